"""Turn image files into batches: `pack` writes shards, `shuffle` orders their samples, `loader` reads them."""

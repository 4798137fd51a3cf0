"""From image files to batches: `pack` writes shards, `plan` orders their samples, `stream` reads them."""

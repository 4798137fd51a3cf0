"""A model of a run on many GPUs: what a step takes, what limits it, and what the data, checkpoints and metrics cost.

Usage: python docs/scale.py [key=value ...]; the tables of docs/scale.md are its output, and its keys are below.

Everything here is arithmetic. Sizes of networks and batches are those of configs/; launches of an iteration are counted
(tests/helpers/fakecuda_launches.json); rates of machines are assumptions, to be replaced by what `distgan bench` and
`distgan.tools.preflight` say of yours.
"""

import math
import sys

NETS = {  # weights of G and D in millions, GFLOP of G's and D's forward on one image, side, batch, R1 and R2, launches
    "dcgan64": (3.6, 2.8, 0.209, 0.208, 64, 128, False, 190),
    "r3gan-cifar10": (20.8, 21.3, 14.0, 14.0, 32, 512, True, 2_099),
    "r3gan-ffhq64": (22.4, 22.4, 26.1, 26.1, 64, 256, True, 2_423),
    "r3gan-256": (23.1, 23.0, 57.6, 57.6, 256, 256, True, 3_141),
}
ASSUMED = {
    "node": 8.0,  # GPUs of a node
    "tflops": 120.0,  # that a GPU reaches on large local batches
    "half": 8.0,  # images of a local batch at which it reaches half of that
    "launch_us": 10.0,  # of the host for each launch, in eager torch with autograd: the least that an iteration takes
    "inside_gb": 300.0,  # GB/s between the GPUs of a node
    "outside_gb": 45.0,  # GB/s of each GPU's own share of the network
    "latency_us": 15.0,  # of one message between nodes
    "overlap": 0.6,  # share of an iteration's computing beside which gradients can travel
    "jitter": 0.01,  # standard deviation of a rank's computing time
    "bucket_mb": 25.0,
    "bytes": 4.0,  # of a gradient's number; 2 with train.grad_compression=bf16
    "weak": 0.0,  # 1: the batch grows with the GPUs, from the config's own on 8
    "samples": 1e9,  # of the data set
    "block": 64.0,  # neighbors that are read together
    "shard_samples": 1e4,
    "decode": 2900.0,  # images of 256 px that a core decodes in a second
    "disk_gb": 1.0,  # GB/s at which a checkpoint is written
    "every": 1e6,  # images from one checkpoint to the next
    "eval_every": 1e7,  # images from one evaluation to the next
    "eval_images": 5e4,
    "eval_gflop": 11.4,  # of the feature extractor on one image
}
GPUS = (8, 16, 64, 256, 1024, 4096)
HEAD = "| GPUs | images each | compute | ring | tree | seen | iteration | images/s | efficiency | limit |"
KB_PER_IMAGE = {32: 1.5, 64: 4.0, 256: 29.4}  # in a shard, with its headers


def iteration_gflop(net: str) -> float:
    """Of one image in a D and a G step: a backward costs two forwards, one to the images alone costs one.

    D's step: the fakes, then real and fake through D forth and back; with R1 and R2, to the images and back through
    that too. G's step: G forth and back, D forth and back to the images, and D on the real images for R3GAN's pairs.
    """
    _, _, g, d, _, _, penalized, _ = NETS[net]
    d_step = g + 2 * d * (3 + (3 if penalized else 0))
    return d_step + 3 * g + 2 * d + (d if penalized else 0)


def ring_sec(num_bytes: float, ranks: float, gb: float, latency_us: float) -> float:
    return 2 * (ranks - 1) / ranks * num_bytes / (gb * 1e9) + 2 * (ranks - 1) * latency_us * 1e-6


def tree_sec(num_bytes: float, ranks: float, gb: float, latency_us: float) -> float:
    return 2 * num_bytes / (gb * 1e9) + 2 * math.log2(ranks) * latency_us * 1e-6 if ranks > 1 else 0.0


def all_reduce_sec(num_bytes: float, gpus: int, a: dict[str, float]) -> dict[str, float]:
    """Inside the nodes, then between them, each GPU with its share of the bytes; for both shapes of the latter."""
    inside = min(gpus, a["node"])
    nodes = gpus / inside
    within = 2 * (inside - 1) / inside * num_bytes / (a["inside_gb"] * 1e9)
    buckets = max(1, math.ceil(num_bytes / (a["bucket_mb"] * 2**20)))
    share = num_bytes / buckets / inside
    shapes = {"ring": ring_sec, "tree": tree_sec}
    return {
        name: within + buckets * shape(share, nodes, a["outside_gb"], a["latency_us"]) for name, shape in shapes.items()
    }


def step(net: str, gpus: int, a: dict[str, float]) -> dict[str, float | str]:
    """Milliseconds of an iteration and of its parts."""
    g, d, _, _, _, batch, _, launches = NETS[net]
    batch = batch * gpus / 8 if a["weak"] else batch
    local = batch / gpus
    if local < 1:
        return {"gpus": gpus, "local": local}
    rate = a["tflops"] * 1e12 * local / (local + a["half"])
    host = launches * a["launch_us"] * 1e-6
    compute = max(local * iteration_gflop(net) * 1e9 / rate, host)
    slowest = compute * (1 + a["jitter"] * math.sqrt(2 * math.log(gpus)))
    travel = all_reduce_sec((g + d) * 1e6 * a["bytes"], gpus, a)
    shape = min(travel, key=travel.get)
    last = all_reduce_sec(min(a["bucket_mb"] * 2**20, (g + d) * 1e6 * a["bytes"]), gpus, a)[shape]
    seen = max(
        travel[shape] - a["overlap"] * compute, 2 * last
    )  # the last bucket of each net has nothing to hide behind
    total = slowest + seen
    parts = {
        "starting kernels": host >= compute,
        "too few images each": local < a["half"],
        "gradients": seen > 0.1 * total,
    }
    return {
        "gpus": gpus,
        "local": local,
        "compute": 1e3 * compute,
        "ring": 1e3 * travel["ring"],
        "tree": 1e3 * travel["tree"],
        "seen": 1e3 * seen,
        "total": 1e3 * total,
        "rate": batch / total,
        "limit": " and ".join(name for name, true in parts.items() if true) or "arithmetic",
    }


def steps_table(net: str, a: dict[str, float]) -> list[str]:
    title = f"{net}, batch {NETS[net][5]:,}" + (" on 8 GPUs, growing with them" if a["weak"] else "")
    lines = [
        f"**{title}**",
        "",
        "| GPUs | images each | compute | ring | tree | seen | iteration | images/s | efficiency | limit |",
    ]
    lines.append("|" + " ---: |" * 9 + " --- |")
    one = None
    for gpus in GPUS:
        row = step(net, gpus, a)
        if row["local"] < 1:
            lines.append(f"| {gpus:,} | less than one: not possible |" + " |" * 8)
            continue
        one = one or row["rate"] / gpus
        times = " | ".join(f"{row[key]:.2f}" for key in ("compute", "ring", "tree", "seen", "total"))
        share = row["rate"] / gpus / one
        lines.append(f"| {gpus:,} | {row['local']:g} | {times} | {row['rate']:,.0f} | {share:.0%} | {row['limit']} |")
    return lines


def data_table(a: dict[str, float]) -> list[str]:
    """What `images/s` ask of the storage, and what a data set of `samples` asks of the ranks."""
    lines = [
        "| images/s | side | MB/s read | requests/s | cores that decode | days for an epoch |",
        "|" + " ---: |" * 6,
    ]
    for side, kb in KB_PER_IMAGE.items():
        for rate in (1e4, 1e5):
            cores, days = rate / a["decode"] * (side / 256) ** 2, a["samples"] / rate / 86400
            row = (rate, side, rate * kb / 1e3, rate / a["block"], math.ceil(cores))
            lines.append("| " + " | ".join(f"{value:,.0f}" for value in row) + f" | {days:.2g} |")
    return lines


def fixed_costs(a: dict[str, float]) -> list[str]:
    blocks, shards = a["samples"] / a["block"], a["samples"] / a["shard_samples"]
    plan_mb, plan_sec = 12 * blocks / 2**20, 5e-9 * a["samples"] * 64 / a["block"]
    size = f"{a['samples']:,.0f} samples in {shards:,.0f} shards: {38 * a['samples'] / 1e9:,.0f} GB of indexes"
    start = f"{1.6e-3 * shards:,.0f} s of one core, divided among the ranks, to read their heads at the start"
    order = f"Their order: {plan_mb:,.0f} MB and {plan_sec:.1f} s on every rank, once an epoch"
    lines = [
        f"{size}; {start}.",
        f"{order}. An epoch is {blocks:,.0f} range requests.",
        "",
        "| on 64 GPUs | checkpoint | its time | share | evaluation | share |",
        "| --- |" + " ---: |" * 5,
    ]
    for net, (g, d, g_flop, *_) in NETS.items():
        size, rate = 4e6 * (4 * g + 3 * d), step(net, 64, a)["rate"]
        saving = size / (a["disk_gb"] * 1e9)
        evaluating = a["eval_images"] * (g_flop + a["eval_gflop"]) / (0.5 * a["tflops"] * 1e3) / 64
        shares = saving * rate / a["every"], evaluating * rate / a["eval_every"]
        kept, measured = (
            f"{size / 1e6:,.0f} MB | {saving:.2f} s | {shares[0]:.2%}",
            f"{evaluating:.1f} s | {shares[1]:.2%}",
        )
        lines.append(f"| {net} | {kept} | {measured} |")
    return lines


def main(settings: list[str]) -> str:
    a = dict(ASSUMED)
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in a:
            raise SystemExit(f"{key}: choose one of {', '.join(a)}")
        a[key] = float(value)
    lines = []
    for net in NETS:
        lines += [*steps_table(net, a), ""]
    grown = steps_table("r3gan-ffhq64", a | {"weak": 1.0})
    return "\n".join([*lines, *grown, "", *data_table(a), "", *fixed_costs(a)])


if __name__ == "__main__":
    print(main(sys.argv[1:]))

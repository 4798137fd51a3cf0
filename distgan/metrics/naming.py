"""What a value is called. The name says which network saw how many images, since values of others do not compare."""

from distgan.metrics.extractors import Extractor
from distgan.metrics.extractors.weights import WEIGHTS


def value_name(name: str, extractor: Extractor, num: int, whole: bool) -> str:
    """The log key of value `name` of METRICS: "fid50k_full", "fd_toy_500", "kid_efficientnet_lite0_10k_full".

    Args:
        num: Generated images.
        whole: Whether they were compared with all images of the data set.
    """
    size = (f"{num // 1000}k" if num % 1000 == 0 else str(num)) + ("_full" if whole else "")
    if extractor.key_prefix == "fid":
        if extractor.name != "inception" or WEIGHTS["inception"].sha256[:12] not in extractor.identity:
            raise ValueError(f"{extractor.identity} is not the Inception network that FID is defined by")
        return f"fid{size}" if name == "fd" else f"{name}_inception_{size}"
    own = extractor.key_prefix.removeprefix("fd_")
    return f"{name}_{own}_{size}"

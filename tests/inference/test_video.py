"""The way through the latents: through the keyframes, on great circles, back to the start."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distgan.data import image_grid
from distgan.inference import video


def test_the_way_passes_the_stops_on_great_circles() -> None:
    keyframes = torch.nn.functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=1) * 3
    way = video.slerp_path(keyframes, 40)
    assert torch.allclose(way[::10], keyframes, atol=1e-6)
    assert torch.allclose(way.norm(dim=1), torch.full((40,), 3.0), atol=1e-5)  # a straight line would come nearer to 0
    following = torch.cat([way[1:], way[:1]])
    cosine = torch.nn.functional.cosine_similarity(way.double(), following.double())
    steps = torch.arccos(cosine).view(4, 10)  # the last of them leads to the first
    assert torch.allclose(steps, steps.mean(1, keepdim=True).expand(-1, 10), atol=1e-4)
    between = torch.stack([keyframes[0], keyframes[1], way[5]])
    assert torch.linalg.matrix_rank(between, atol=1e-4) == 2


def test_latents_without_a_circle_through_them_are_joined_by_a_line() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    way = video.slerp_path(z, 6)
    assert way.tolist() == [[1, 0], [1, 0], [1, 0], [0, 0], [-1, 0], [0, 0]]


@pytest.mark.parametrize("num", [5, 7, 48])
def test_any_number_of_frames_is_spread_evenly(num: int) -> None:
    angles = torch.tensor([0.0, 2.0, 4.0]) * torch.pi / 3
    way = video.slerp_path(
        torch.stack([angles.cos(), angles.sin()], dim=1), num
    )  # keyframes on a circle: the way is the circle
    expected = torch.arange(num) * 2 * torch.pi / num
    assert torch.allclose(way, torch.stack([expected.cos(), expected.sin()], dim=1), atol=1e-5)


def pictures(num: int = 12) -> list[np.ndarray]:
    ramp = np.linspace(0, 200, 32, dtype=np.uint8)
    return [image_grid.grid([np.broadcast_to(ramp[:, None, None] + 4 * i, (32, 32, 3))], 1) for i in range(num)]


def test_a_webp_holds_every_frame_and_its_time(tmp_path: Path) -> None:
    video.save(tmp_path / "walk.webp", iter(pictures()), fps=30)
    with Image.open(tmp_path / "walk.webp") as file:
        assert (file.n_frames, file.size, file.info["loop"]) == (12, (32, 32), 0)
        lasts = []
        for i, expected in enumerate(pictures()):
            file.seek(i)
            assert np.array_equal(np.asarray(file.convert("RGB")), expected)
            lasts.append(file.info["duration"])
    assert sum(lasts) == 400
    assert set(lasts) == {33, 34}
    assert [path.name for path in tmp_path.iterdir()] == ["walk.webp"]


def test_an_mp4_holds_every_frame(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed (pip install 'distgan[video]')")
    video.save(tmp_path / "walk.mp4", iter(pictures()), fps=12.5)
    with av.open(str(tmp_path / "walk.mp4")) as file:
        assert float(file.streams.video[0].average_rate) == 12.5
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(frames) == 12
    assert all(np.abs(frame.astype(int) - expected).mean() < 4 for frame, expected in zip(frames, pictures()))


def test_a_video_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> None:
        yield pictures()[0]
        raise OSError("disk")

    for name in ("walk.webp", "walk.mp4"):
        if name.endswith("mp4"):
            pytest.importorskip("av")
        with pytest.raises(OSError, match="disk"):
            video.save(tmp_path / name, broken(), fps=25)
    assert list(tmp_path.iterdir()) == []

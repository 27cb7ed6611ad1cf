"""Clips made here, whose every frame tells its own number, through the sampler."""

import io
import struct
import tracemalloc
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from qvl.catalog.generations.qwen3_vl import QWEN3_VIDEO
from qvl.errors import MediaError
from qvl.geometry import VideoLimits, frame_indices
from qvl.inputs import video as video_module
from qvl.inputs.video import choose_frames, frames_at, load_video

LIMITS = VideoLimits(min_pixels=784, max_pixels=64 * 784, total_pixels=10**9)


def grey(number):
    """Frame `number` is one even grey, which survives compression."""
    return 20 + number * 5 % 230


def write_clip(
    path, numbers, fps=10, codec="libx264", size=(64, 64), pts=None, kind=None, gop=12, audio=False, **options
):
    """A clip of even greys; pts in milliseconds make it of variable rate."""
    with av.open(
        str(path) if isinstance(path, str | type(None)) or hasattr(path, "name") else path, "w", format=kind
    ) as out:
        stream = out.add_stream(codec, rate=fps, options={str(k): str(v) for k, v in options.items()})
        stream.width, stream.height = size[1], size[0]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        stream.bit_rate = 4_000_000
        stream.codec_context.thread_count = 1
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream("aac", rate=16000) if audio else None
        for i, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), grey(number), np.uint8), format="rgb24")
            frame.pts = i if pts is None else pts[i]
            frame.time_base = Fraction(1, fps) if pts is None else Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if sound is not None:
            samples = av.AudioFrame.from_ndarray(
                np.zeros((1, 16000), np.float32), format="fltp", layout="mono"
            )
            samples.sample_rate, samples.pts = 16000, 0
            out.mux(sound.encode(samples))
            out.mux(sound.encode())
    return path


def numbers_of(clip, count=46):
    """Which frame each sampled frame is, told by its grey."""
    greys = clip.frames.reshape(len(clip.frames), -1).mean(axis=1)
    table = np.array([grey(n) for n in range(count)])
    return [int(np.abs(table - g).argmin()) for g in greys]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mkv", "libx264"),
        ("a.avi", "mpeg4"),
        ("a.webm", "libvpx-vp9"),
        ("a.mov", "mjpeg"),
        ("a.ts", "libx264"),
    ],
)
@pytest.mark.parametrize("fps", [2, 5])
def test_frames_are_chosen_as_the_reference_does_in_every_container(tmp_path, name, codec, fps):
    path = write_clip(tmp_path / name, range(40), codec=codec)
    clip = load_video(path, replace(LIMITS, fps=fps))
    count = 4 * fps
    assert numbers_of(clip) == frame_indices(40, count)
    assert clip.fps == pytest.approx(fps, rel=0.01)
    assert clip.times == pytest.approx([i / 10 for i in frame_indices(40, count)], abs=0.002)
    assert clip.seconds == pytest.approx(4.0, abs=0.05)


@pytest.mark.parametrize("gop", [1, 3, 40])
@pytest.mark.parametrize("b_frames", [0, 3])
def test_runs_without_a_wanted_frame_may_be_skipped_without_changing_the_others(tmp_path, gop, b_frames):
    path = write_clip(tmp_path / "a.mp4", range(40), gop=gop, bf=b_frames)
    clip = load_video(path, replace(LIMITS, num_frames=4))
    assert numbers_of(clip) == [0, 13, 26, 39]


def test_open_groups_of_pictures_are_decoded_with_the_run_before_them(tmp_path):
    options = {"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3:scenecut=0"}
    path = write_clip(tmp_path / "a.mkv", range(40), gop=8, **options)
    for count in (4, 6, 10, 20):
        clip = load_video(path, replace(LIMITS, num_frames=count))
        assert numbers_of(clip) == frame_indices(40, count)


def test_runs_without_a_wanted_frame_are_not_decoded(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", range(45), gop=5, bf=0)
    decoded = []
    original = video_module._upright

    def counting(frame):
        decoded.append(frame)
        return original(frame)

    packets = []
    real_open = av.open

    class Container:
        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.inner.close()

        def demux(self, stream):
            for packet in self.inner.demux(stream):
                packets.append(Packet(packet))
                yield packets[-1]

    class Packet:
        def __init__(self, inner):
            self.inner, self.was_decoded = inner, False

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def decode(self):
            self.was_decoded = True
            return self.inner.decode()

    monkeypatch.setattr(video_module, "_upright", counting)
    monkeypatch.setattr(av, "open", lambda *a, **k: Container(real_open(*a, **k)))
    clip = load_video(path, replace(LIMITS, num_frames=2))
    assert numbers_of(clip) == [0, 44]
    assert len(decoded) == 2
    assert sum(p.was_decoded for p in packets) <= 12  # of 45: two runs of 5, and what a run's start needs


def test_a_variable_rate_gives_what_is_on_screen_at_even_instants(tmp_path):
    # slides: 0 for 1 s, 1 for 5 s, 2 for half a second, 3 for 1.5 s
    path = write_clip(tmp_path / "a.mkv", range(5), pts=[0, 1000, 6000, 6500, 8000])
    clip = load_video(path, replace(LIMITS, fps=1))
    step = clip.times[1] - clip.times[0]
    assert np.diff(clip.times) == pytest.approx(step)
    starts = [0, 1.0, 6.0, 6.5, 8.0]
    assert numbers_of(clip) == [max(n for n in range(5) if starts[n] <= t + 0.002) for t in clip.times]
    assert numbers_of(clip).count(1) > len(clip.frames) / 3
    assert clip.fps == pytest.approx(len(clip.frames) / clip.seconds)


def test_times_of_an_even_rate_are_as_exact_as_the_rate(tmp_path):
    # webm rounds to milliseconds; the middle of 0.133 and 0.167 is written <0.2 seconds>, that of 4/30 and 5/30 <0.1
    path = write_clip(tmp_path / "a.webm", range(45), fps=30, codec="libvpx-vp9")
    clip = load_video(path, replace(QWEN3_VIDEO, fps=30.0))
    assert clip.times == tuple(i / 30 for i in range(45))


@pytest.mark.parametrize("count", [2, 3, 5, 8, 13])
@pytest.mark.parametrize("start", [0.0, 0.08])
def test_a_short_clip_keeps_the_rate_that_its_file_states(count, start):
    times = [start + round(i * 1000 / 30) / 1000 for i in range(count)]
    seconds = times[-1] - times[0] + 0.033
    choice = choose_frames(times, seconds, replace(QWEN3_VIDEO, fps=30.0, min_frames=1), stated_rate=30.0)
    assert choice.indices == tuple(range(count))
    assert choice.times == tuple(i / 30 for i in range(count))


def test_times_count_from_the_first_frame(tmp_path):
    path = write_clip(tmp_path / "a.mkv", range(20), pts=[5000 + 100 * i for i in range(20)])
    clip = load_video(path, replace(LIMITS, fps=2))
    assert clip.times[0] == 0.0
    assert clip.times[-1] == pytest.approx(1.9, abs=0.002)


def test_sound_is_neither_needed_nor_in_the_way(tmp_path):
    with_sound = write_clip(tmp_path / "a.mp4", range(20), audio=True)
    silent = write_clip(tmp_path / "b.mp4", range(20))
    limits = replace(LIMITS, fps=2)
    assert numbers_of(load_video(with_sound, limits)) == numbers_of(load_video(silent, limits))


def test_a_file_with_sound_only_is_named(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        out.mux(stream.encode(samples))
        out.mux(stream.encode())
    with pytest.raises(MediaError, match=r"song\.mp4: holds no video, only audio"):
        load_video(path, LIMITS)


def test_frames_are_sized_for_their_number(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(40), size=(240, 320))
    limits = VideoLimits(min_pixels=784, max_pixels=80 * 784, total_pixels=40 * 784)
    few = load_video(path, replace(limits, num_frames=2))
    many = load_video(path, replace(limits, num_frames=20))
    assert few.original == many.original == (240, 320)
    assert few.seen.height * few.seen.width <= 40 * 784
    assert many.seen.height * many.seen.width <= 40 * 784 / 20 * 2
    assert len(many.frames) == 20


def test_minimum_and_maximum_of_frames_hold(tmp_path):
    path = write_clip(tmp_path / "a.mp4", range(40))
    assert len(load_video(path, replace(LIMITS, fps=0.1)).frames) == 4
    assert len(load_video(path, replace(LIMITS, fps=10, max_frames=6)).frames) == 6


def test_a_single_frame_is_a_video(tmp_path):
    clip = load_video(write_clip(tmp_path / "a.mp4", [7]), LIMITS)
    assert numbers_of(clip) == [7]
    assert clip.times == (0.0,)


def test_bytes_and_file_urls_are_read(tmp_path):
    path = write_clip(tmp_path / "a clip.mp4", range(20))
    for source in (path.read_bytes(), path.as_uri(), str(path)):
        assert numbers_of(load_video(source, LIMITS)) == frame_indices(20, 4)


def turned_matrix(degrees):
    """The display matrix of a track header: 16.16 fixed point, the last column 2.30."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    return struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_telephones_lying_video_is_turned_upright(tmp_path, degrees):
    path = tmp_path / "a.mp4"
    picture = np.zeros((64, 128, 3), np.uint8)
    picture[:32, :64] = 255  # white in the upper left
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for _ in range(4):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    data = path.read_bytes()
    header = data.index(b"tkhd")
    at = data.index(plain, header)
    path.write_bytes(data[:at] + turned_matrix(degrees) + data[at + 36 :])
    clip = load_video(path, LIMITS)
    expected = np.asarray(
        Image.fromarray(picture).rotate(-degrees, expand=True)
    )  # clockwise, as players show it
    assert clip.original == expected.shape[:2]
    seen = np.asarray(Image.fromarray(clip.frames[0]).resize((expected.shape[1], expected.shape[0])))
    assert np.abs(seen.astype(int) - expected).mean() < 12


# --------------------------------------------------------------------------------- frames and animations


def test_a_list_of_pictures_is_used_whole_at_its_rate(tmp_path):
    frames = [Image.new("RGB", (64, 64), (grey(n),) * 3) for n in range(6)]
    frames[2].save(tmp_path / "2.png")
    mixed = [*frames[:2], str(tmp_path / "2.png"), np.asarray(frames[3]), *frames[4:]]
    clip = load_video(mixed, LIMITS, sample_fps=4.0)
    assert numbers_of(clip) == list(range(6))
    assert clip.times == tuple(i / 4 for i in range(6))
    assert (clip.fps, clip.seconds) == (4.0, 1.5)
    assert load_video(frames, LIMITS).fps == 2.0


def test_a_long_list_is_thinned_to_max_frames():
    clip = load_video(np.zeros((100, 32, 32, 3), np.uint8), replace(LIMITS, max_frames=10), sample_fps=10.0)
    assert len(clip.frames) == 10
    assert clip.fps == pytest.approx(1.0)
    assert clip.times[-1] == pytest.approx(9.9)


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "is empty"),
        (np.zeros((4, 8, 8), np.uint8), r"shape \(4, 8, 8\)"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "frame 1 has 9x8 pixels, the first 8x8"),
        (["missing.png"], "no such file"),
    ],
)
def test_odd_lists_are_refused(frames, reason):
    with pytest.raises(MediaError, match=reason):
        load_video(frames, LIMITS)


def test_a_rate_for_a_file_and_an_impossible_rate_for_a_list_are_refused(tmp_path):
    with pytest.raises(MediaError, match="rate of a list"):
        load_video(tmp_path / "a.mp4", LIMITS, sample_fps=2.0)
    with pytest.raises(MediaError, match="sample_fps is 0"):
        load_video([Image.new("RGB", (8, 8))], LIMITS, sample_fps=0)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animated_picture_is_a_video_with_its_own_times(kind):
    frames = [Image.new("RGB", (64, 64), (grey(n),) * 3) for n in range(10)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], duration=200)
    clip = load_video(out.getvalue(), replace(LIMITS, fps=5))
    assert numbers_of(clip) == list(range(10))
    assert clip.times == pytest.approx([i * 0.2 for i in range(10)])
    assert clip.seconds == pytest.approx(2.0)


def test_an_animation_with_a_long_last_frame_shows_it_as_long():
    frames = [Image.new("RGB", (64, 64), (grey(n),) * 3) for n in range(3)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:], duration=[500, 500, 4000])
    clip = load_video(out.getvalue(), replace(LIMITS, fps=2))
    assert clip.seconds == pytest.approx(5.0)
    assert numbers_of(clip).count(2) >= len(clip.frames) * 0.7


# ------------------------------------------------------------------------------------------ broken files


@pytest.mark.parametrize(
    ("content", "reason"), [(b"hello, I am text\n" * 20, "can't be decoded as a video"), (b"", "is empty")]
)
def test_a_file_that_is_no_video_is_named(tmp_path, content, reason):
    path = tmp_path / "film.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=rf"film\.mp4: {reason}"):
        load_video(path, LIMITS)


def test_a_file_cut_short_is_refused_with_both_times(tmp_path):
    noisy = tmp_path / "cut.mp4"
    rng = np.random.default_rng(0)
    with av.open(str(noisy), "w", options={"movflags": "faststart"}) as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for _ in range(60):
            picture = rng.integers(0, 256, (120, 160, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode())
    data = noisy.read_bytes()
    noisy.write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.mp4: ends after [23]\.\d s of 6\.0 s"):
        load_video(noisy, LIMITS)


def test_a_file_without_its_table_of_frames_is_refused(tmp_path):
    data = write_clip(tmp_path / "a.mp4", range(40)).read_bytes()  # the table lies at the end
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.mp4: "):
        load_video(tmp_path / "cut.mp4", LIMITS)


def test_a_mutated_file_gives_a_video_or_a_media_error(tmp_path):
    rng = np.random.default_rng(3)
    for name, codec in (("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.mkv", "libx264")):
        data = np.frombuffer(write_clip(tmp_path / name, range(20), codec=codec).read_bytes(), np.uint8)
        for _ in range(25):
            broken = data.copy()
            broken[rng.integers(0, len(data), 6)] = rng.integers(0, 256, 6)
            try:
                clip = load_video(broken.tobytes(), LIMITS)
            except MediaError:
                continue
            assert clip.frames.dtype == np.uint8
            assert len(clip.times) == len(clip.frames)


def test_a_playlist_opens_no_other_file(tmp_path):
    secret = write_clip(tmp_path / "secret.ts", range(20))
    for name, content in (
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{secret}\n#EXT-X-ENDLIST\n"),
        ("list.ffconcat", f"ffconcat version 1.0\nfile {secret}\n"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(MediaError, match="can't be decoded as a video"):
            load_video(tmp_path / name, LIMITS)


def test_network_addresses_and_folders_are_refused(tmp_path):
    with pytest.raises(MediaError, match="download it first"):
        load_video("https://example.org/a.mp4", LIMITS)
    with pytest.raises(MediaError, match="is a folder, not a video"):
        load_video(tmp_path, LIMITS)


def test_frames_beyond_the_pixel_limit_are_refused_before_decoding(tmp_path):
    from qvl.inputs.image import ImageLimits

    path = write_clip(tmp_path / "a.mp4", range(4))
    with pytest.raises(MediaError, match="64x64 = 4,096 pixels, the limit is 4,000"):
        load_video(path, LIMITS, ImageLimits(max_pixels=4000))


# ------------------------------------------------------------------------------------------------ memory


def test_memory_holds_the_kept_frames_and_not_the_video(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", range(100), size=(240, 320), gop=100)
    live = most = 0
    original = video_module._upright

    def counting(frame):
        nonlocal live, most
        import weakref

        image = original(frame)
        live += 1
        most = max(most, live)

        def gone():
            nonlocal live
            live -= 1

        weakref.finalize(image, gone)
        return image

    monkeypatch.setattr(video_module, "_upright", counting)
    limits = VideoLimits(min_pixels=784, max_pixels=4 * 784, total_pixels=10**9, num_frames=100)
    tracemalloc.start()
    clip = load_video(path, limits)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(clip.frames) == 100
    assert most <= 3  # full-size pictures at a time
    assert peak < clip.frames.nbytes + 4_000_000  # all 100 at full size would be 23 MB


def test_choosing_from_an_hour_is_arithmetic_over_its_times():
    times = [i / 30 for i in range(30 * 3600)]
    choice = choose_frames(times, 3600.0, replace(LIMITS, max_frames=768))
    assert len(choice.indices) == 768
    assert (choice.indices[0], choice.indices[-1]) == (0, 30 * 3600 - 1)
    assert choice.fps == pytest.approx(768 / 3600)


def test_the_film_is_read_and_not_a_small_still_before_it(tmp_path):
    path = tmp_path / "cover.mp4"
    with av.open(str(path), "w") as out:
        still = out.add_stream("mjpeg", rate=1)
        still.width, still.height, still.pix_fmt = 16, 16, "yuvj420p"
        film = out.add_stream("libx264", rate=10)
        film.width, film.height, film.pix_fmt = 64, 64, "yuv420p"
        for stream, count, side in ((still, 1, 16), (film, 20, 64)):
            for i in range(count):
                frame = av.VideoFrame.from_ndarray(np.full((side, side, 3), 10 * i, np.uint8), format="rgb24")
                frame.pts = i
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    video = load_video(str(path), LIMITS)
    assert video.original == (64, 64)
    assert len(video.frames) == 4
    (last,) = frames_at(str(path), [1.9])
    assert last.size == (64, 64)

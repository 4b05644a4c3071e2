"""The pictures of documents: files of strangers in, patches of the vision tower out; Pillow and numpy only."""

import concurrent.futures
import logging
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from moon_jax.config import DataConfig, Role, VisionConfig
from moon_jax.data import policy
from moon_jax.data.documents import Document, PictureLike
from moon_jax.data.grids import picture_grid
from moon_jax.data.patches import Picture, patchify
from moon_jax.data.picture_files import ImageError, load, name_of, upright_size
from moon_jax.data.policy import Ledger, Skipped
from moon_jax.data.records import DataError, Dataset, ImageRef
from moon_jax.data.views import augment, crop, crop_area, pad_to_aspect, padded_size

_LOG = logging.getLogger(__name__)


class BoxError(DataError):
    """A box that holds nothing of its picture; the message names the picture."""

    reason = "box beside its picture"


def pictures(
    document: Document,
    data: DataConfig,
    vision: VisionConfig,
    augment_key: Sequence[int] | None = None,
    least_box: float = 1.0,
) -> list[Picture]:
    """Returns the pictures of a document in order, each followed by the crop of its box where that is usable.

    Args:
      document: its `images`.
      data: `crop`, `crop_margin`, `on_error` and the pixel budget.
      vision: sizes of patches.
      augment_key: the `key` of `augment`; None leaves the pictures as they are.
      least_box: see `augment`.

    Raises:
      ImageError: names the picture that cannot be read.
      BoxError: a box holds nothing of its picture, and `data.on_error` is "raise"; else see `unused_boxes`.
    """
    out = []
    for number, ref in enumerate(document.images):
        image, box = load(ref.path), ref.box
        _check_box(ref, image.size, data)
        if augment_key is not None:
            image, box = augment(image, box, (*augment_key, number), data.augment_area, least_box)
        views = [(image, Role.IMAGE)]
        if data.crop and box is not None and (core := crop(image, box, data.crop_margin)) is not None:
            views.append((core, Role.CORE))
        for view, role in views:
            view = pad_to_aspect(view, data.max_aspect)
            out.append(patchify(view, vision, data.min_pixels, data.max_pixels, role))
    return out


def grids(document: Document, data: DataConfig, vision: VisionConfig) -> list[tuple[tuple[int, int], Role]]:
    """Returns the (grid, role) of every picture that `pictures` makes, from the headers of the files alone.

    Raises:
      ImageError: names the picture whose header cannot be read.
      BoxError: see `pictures`.
    """
    out = []
    for ref in document.images:
        size = upright_size(ref.path)
        _check_box(ref, size, data)
        views = [(size, Role.IMAGE)]
        if data.crop and ref.box is not None and (area := crop_area(size, ref.box, data.crop_margin)) is not None:
            views.append(((area[2] - area[0], area[3] - area[1]), Role.CORE))
        out += [(grid(view, data, vision), role) for view, role in views]
    return out


def grid(size: tuple[int, int], data: DataConfig, vision: VisionConfig) -> tuple[int, int]:
    """Returns the patches (high, wide) of a picture of `size` = (width, height) px under the settings."""
    width, height = padded_size(size, data.max_aspect)
    return picture_grid(height, width, vision, data.min_pixels, data.max_pixels)


def count(image: ImageRef, data: DataConfig) -> int:
    """Returns how many pictures `pictures` makes of a reference at most: one, or two with a box."""
    return 1 + (data.crop and image.box is not None)


def unused_boxes(refs: Sequence[ImageRef], made: Sequence[PictureLike], data: DataConfig) -> Iterator[Skipped]:
    """Yields the boxes whose crop is not among the pictures that were made of the references, all of which were read.

    Args:
      refs: the images of a document.
      made: what `pictures` gave for them.
      data: `crop`.
    """
    roles = [picture.role for picture in made] + [Role.IMAGE]
    whole = [place for place, role in enumerate(roles[:-1]) if role == Role.IMAGE]
    for ref, place in zip(refs, whole, strict=True):
        if data.crop and ref.box is not None and roles[place + 1] != Role.CORE:
            yield Skipped(BoxError.reason, f"{_beside(ref)}, so that its crop was left out")


def check(dataset: Dataset, data: DataConfig) -> None:
    """Reads the header of every picture of a data set, so that a missing one is known before training starts.

    With `on_error="skip"` broken ones are left to be skipped where they occur; a file that is cut short behind a whole
    header is found only when it is decoded. `data.check_pictures` turns this off where it would take too long.

    Raises:
      ImageError: names the first broken pictures.
      DataError: with "skip": more than `max_skipped_share` of all are broken.
    """
    if not data.check_pictures:
        return
    first: dict[ImageRef, str] = {}  # who shows it
    for product in dataset.products.values():
        for image in product.images:
            first.setdefault(image, f"listing {policy.shown(product.id)}")
    for triplet in (*dataset.train, *dataset.seen, *dataset.unseen):
        if triplet.query.image is not None:
            first.setdefault(triplet.query.image, f"query of {policy.shown(triplet.id)}")
    refs, ledger = sorted(first, key=lambda ref: str(ref.path)), Ledger("pictures", data)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = pool.map(lambda ref: _problem(ref, data), refs)
        few = len(refs) < 20_000
        for ref, problem in zip(
            refs, tqdm(found, "checking pictures", len(refs), unit="file", disable=few), strict=True
        ):
            if problem is not None:
                ledger.add(Skipped(problem.reason, f"{first[ref]}: {problem}"))
    if ledger.count and data.on_error == "raise":
        raise ImageError(
            f"{ledger.count} of {len(refs)} pictures cannot be used:{ledger.listed()}\n"
            'config.data.on_error = "skip" leaves such pictures out'
        )
    ledger.check(len(refs))
    if ledger.count:
        _LOG.warning("%d of %d pictures cannot be used:%s", ledger.count, len(refs), ledger.listed())


def _problem(ref: ImageRef, data: DataConfig) -> DataError | None:
    """Returns what is wrong with a picture and its box as far as its header tells, or None."""
    try:  # a picture of a store was decoded when it was packed
        if data.crop and ref.box is not None and crop_area(upright_size(ref.path), ref.box, 0.0) is None:
            return BoxError(_beside(ref))
        upright_size(ref.path)
    except ImageError as error:
        return error
    return None


def _check_box(ref: ImageRef, size: tuple[int, int], data: DataConfig) -> None:
    if data.on_error == "raise" and data.crop and ref.box is not None and crop_area(size, ref.box, 0.0) is None:
        raise BoxError(_beside(ref))


def _beside(ref: ImageRef) -> str:
    return f"{name_of(ref.path)}: the box {tuple(ref.box or ())} holds nothing of the picture"

"""Products to training batches: read once, decoded and augmented on the fly in a background thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uniecs.catalog import Product, read_catalog
from uniecs.config import ModelConfig, Preprocessing
from uniecs.errors import ImageError, InputError, TrainingError
from uniecs.preprocess import Tokenizer, check_text, letterbox, normalize, open_image
from uniecs.trainer.distributed import World
from uniecs.trainer.pairs import PairSource
from uniecs.trainer.settings import WHOLE_IMAGES, AugmentSettings


@dataclass(frozen=True)
class Batch:
    """2n products: rows 0..n-1 are side 1, rows n..2n-1 their partners; `patches` as in `ImageEncoder`."""

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    patches: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixel_values)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """What `UniECS.forward` takes."""
        return self.pixel_values, self.input_ids, self.attention_mask, self.patches

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        pixels, ids, mask = (each.to(device, non_blocking=True) for each in self.inputs()[:3])
        return Batch(pixels, ids, mask, None if self.patches is None else self.patches.to(device, non_blocking=True))

    def split(self, products: int | None) -> list[Batch]:
        """Pieces of at most `products` rows; None for one piece."""
        size = products or len(self)
        return [self._rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def _rows(self, rows: slice) -> Batch:
        patches = None if self.patches is None else self.patches[rows]
        return Batch(self.pixel_values[rows], self.input_ids[rows], self.attention_mask[rows], patches)


@dataclass(frozen=True)
class ProductSet:
    """The products that can be trained on: those with a readable image and a title."""

    products: tuple[Product, ...]
    token_ids: tuple[tuple[int, ...], ...]
    rejected: tuple[str, ...]


def read_products(catalog: Path, tokenizer: Tokenizer) -> ProductSet:
    """Read a catalogue; rows without an image or a title, or with an unreadable one, are listed in `rejected`."""
    products, rejected = [], []
    for row, item in enumerate(read_catalog(catalog)):
        if not isinstance(item, Product):
            rejected.append(f"row {item.row}: {item.error}")
        elif item.title is None or item.image is None:
            rejected.append(f"row {row} ({item.id}): training needs both a title and an image")
        else:
            try:
                check_text(item.title)
                open_image(item.image)
                products.append(item)
            except InputError as error:
                rejected.append(f"row {row} ({item.id}): {error}")
    if not products:
        raise TrainingError(f"{catalog} has no product with both a title and a readable image")
    ids = tokenizer.encode([str(product.title) for product in products])
    return ProductSet(tuple(products), tuple(map(tuple, ids)), tuple(rejected))


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for n images: crop and flip as (n, 2, 3) affine maps, colour factors as (3, n, 1, 1, 1)."""

    affine: npt.NDArray[np.float32]
    factors: npt.NDArray[np.float32]

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> Augmentation:
        return Augmentation(self.affine[rows], self.factors[:, rows])


def draw_augmentation(n: int, settings: AugmentSettings, random: np.random.Generator) -> Augmentation:
    """Random crop, horizontal flip and colour jitter for `n` images."""
    side = random.uniform(settings.crop, 1, (n, 2))
    shift = random.uniform(-1, 1, (n, 2)) * (1 - side)
    flip = np.where(random.random(n) < settings.flip, -1.0, 1.0)
    affine = np.zeros((n, 2, 3), np.float32)
    affine[:, 0, 0], affine[:, 1, 1] = side[:, 0] * flip, side[:, 1]
    affine[:, :, 2] = shift
    factors = random.uniform(1 - settings.jitter, 1 + settings.jitter, (3, n, 1, 1, 1)).astype(np.float32)
    return Augmentation(affine, factors)


def augment(canvas: npt.NDArray[np.uint8], drawn: Augmentation) -> npt.NDArray[np.float32]:
    """Crop, flip and jitter (n, H, W, 3) uint8 -> float32 of the same shape, 0 to 255."""
    # Inverted, so that what lies outside the picture is white.
    x = 1 - torch.from_numpy(canvas).permute(0, 3, 1, 2).contiguous().float() / 255
    grid = F.affine_grid(torch.from_numpy(drawn.affine), list(x.shape), align_corners=False)
    x = 1 - F.grid_sample(x, grid, padding_mode="zeros", align_corners=False)
    brightness, contrast, saturation = torch.from_numpy(drawn.factors)
    x = x * brightness
    x = (x - x.mean((1, 2, 3), keepdim=True)) * contrast + x.mean((1, 2, 3), keepdim=True)
    grey = x.mean(1, keepdim=True)
    x = ((x - grey) * saturation + grey).clamp(0, 1)
    return np.asarray((x.permute(0, 2, 3, 1) * 255).numpy(), np.float32)


def drop_tokens(ids: Sequence[int], rate: float, random: np.random.Generator) -> list[int]:
    """Drop each token with probability `rate`, but not the first and last, which are [CLS] and [SEP]."""
    kept = random.random(len(ids)) >= rate
    kept[[0, -1]] = True
    return [each for each, keep in zip(ids, kept.tolist(), strict=True) if keep]


def choose_patches(images: int, patches: int, rate: float, random: np.random.Generator) -> Tensor | None:
    """(images, kept) int64: a random choice of each image's patches without the share `rate`; None for all."""
    kept = max(1, round(patches * (1 - rate)))
    if kept == patches:
        return None
    order = np.argsort(random.random((images, patches)), axis=1)[:, :kept]
    return torch.from_numpy(np.sort(order, axis=1))


def make_batch(
    data: ProductSet,
    pairs: npt.NDArray[np.int64],
    config: ModelConfig,
    settings: AugmentSettings,
    seed: Sequence[int],
    share: slice = slice(None),
) -> Batch:
    """Decode, augment and tokenise the products of the `share` of `pairs` (N, 2); a function of its arguments only.

    What is random is drawn for all pairs, so that a product is augmented alike however many ranks there are.
    """
    order = pairs.T.reshape(-1)
    mine = np.arange(len(order)).reshape(2, -1)[:, share].reshape(-1)
    random = np.random.default_rng(seed)
    drawn = draw_augmentation(len(order), settings, random)
    ids = [drop_tokens(data.token_ids[i], settings.token_dropout, random) for i in order.tolist()]
    patches = choose_patches(len(order), config.image_tokens - 1, settings.patch_dropout, random)
    canvas = np.stack([_canvas(data.products[i], config.preprocessing) for i in order[mine].tolist()])
    pixels = normalize(augment(canvas, drawn[mine]), config.preprocessing)
    input_ids, attention_mask = Tokenizer.pad([ids[i] for i in mine.tolist()])
    return Batch(
        torch.from_numpy(pixels),
        torch.from_numpy(input_ids),
        torch.from_numpy(attention_mask),
        None if patches is None else patches[torch.from_numpy(mine)],
    )


def _canvas(product: Product, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    if product.image is None:
        raise ImageError(f"product {product.id} has no image")
    return letterbox(open_image(product.image), preprocessing)


def batches(
    data: ProductSet,
    source: PairSource,
    config: ModelConfig,
    settings: AugmentSettings,
    *,
    batch_pairs: int,
    seed: int,
    start: int,
    stop: int,
    world: World,
) -> Iterator[Batch]:
    """This rank's part of the batches of steps `start` to `stop` - 1; one is prepared while the last is used.

    Step s gives the same global batch whichever step the run was started at, so that a resumed run sees the same
    data. Pairs that the ranks cannot share equally wait for another epoch.
    """

    whole_images = replace(settings, patch_dropout=0.0)
    last_dropping = round(stop * (1 - WHOLE_IMAGES))

    def positions() -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
        step = epoch = 0
        while step < stop:
            for pairs in source.epoch(epoch, batch_pairs, seed):
                shared = pairs[: len(pairs) // world.size * world.size]
                if len(shared) < 2:
                    raise TrainingError(f"a batch of {len(pairs)} pairs is too small for {world.size} ranks")
                if start <= step < stop:
                    yield step, shared
                step += 1
            epoch += 1

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead: Future[Batch] | None = None
        for step, pairs in positions():
            chosen = settings if step < last_dropping else whole_images
            share = world.share(len(pairs))
            future = pool.submit(make_batch, data, pairs, config, chosen, (seed, step), share)
            if ahead is not None:
                yield ahead.result()
            ahead = future
        if ahead is not None:
            yield ahead.result()

"""Pairs of products to training batches: decoded, augmented and tokenised in the background, while the last is used."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from uniecs.catalog import Product
from uniecs.config import ModelConfig, Preprocessing
from uniecs.errors import InputError, TrainingError
from uniecs.preprocess import Tokenizer, normalize, read_canvas
from uniecs.trainer.distributed import World
from uniecs.trainer.pairs import Pair, PairStream, fill_gaps
from uniecs.trainer.settings import WHOLE_IMAGES, AugmentSettings

PREFETCH = 2
"""Batches prepared ahead of the one in use."""
MAX_DECODERS = 16
Canvas = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Batch:
    """2n products: rows 0..n-1 are side 1, rows n..2n-1 their partners; `patches` and `has_image` as in `UniECS`."""

    pixel_values: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    patches: Tensor | None = None
    has_image: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pixel_values)

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """What `UniECS.forward` takes."""
        return self.pixel_values, self.input_ids, self.attention_mask, self.patches, self.has_image

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        pixels, ids, mask, *rest = self.inputs()
        moved = (each.to(device, non_blocking=True) for each in (pixels, ids, mask))
        return Batch(*moved, *(None if each is None else each.to(device, non_blocking=True) for each in rest))

    def split(self, products: int | None) -> list[Batch]:
        """Pieces of at most `products` rows; None for one piece."""
        size = products or len(self)
        return [self._rows(slice(start, start + size)) for start in range(0, len(self), size)]

    def _rows(self, rows: slice) -> Batch:
        pixels, ids, mask, *rest = self.inputs()
        return Batch(pixels[rows], ids[rows], mask[rows], *(None if each is None else each[rows] for each in rest))


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


@dataclass(frozen=True)
class BatchMaker:
    """Makes the batch of a step from its pairs: a function of the pairs, the seed and the step."""

    tokenizer: Tokenizer
    config: ModelConfig
    settings: AugmentSettings
    seed: int
    decoders: ThreadPoolExecutor

    def make(self, pairs: Sequence[Pair], step: int, share: slice, patch_dropout: float) -> Batch:
        """Decode, augment and tokenise the products of the `share` of `pairs`.

        What is random is drawn for all pairs, so that a product is augmented alike however many ranks there are. A
        pair with a photo that cannot be read is named on stderr, and another of the share stands in for it.
        """
        sides = [each for side in zip(*pairs, strict=True) for each in side]
        random = np.random.default_rng((self.seed, step))
        drawn = draw_augmentation(len(sides), self.settings, random)
        tokens = self.tokenizer.encode([str(each.title) for each in sides])
        ids = [drop_tokens(each, self.settings.token_dropout, random) for each in tokens]
        patches = choose_patches(len(sides), self.config.image_tokens - 1, patch_dropout, random)
        place = np.arange(len(sides)).reshape(2, -1)[:, share]
        decoded = list(self.decoders.map(self._canvases, pairs[share]))
        used = fill_gaps([None if each is None else i for i, each in enumerate(decoded)], "has photos that can be read")
        canvases = [decoded[i][side] for side in (0, 1) for i in used]  # type: ignore[index]
        rows = place.reshape(-1)
        blank = np.full((self.config.preprocessing.height_px, self.config.preprocessing.width_px, 3), 255, np.uint8)
        canvas = np.stack([blank if each is None else each for each in canvases])
        pixels = normalize(augment(canvas, drawn[rows]), self.config.preprocessing)
        input_ids, attention_mask = Tokenizer.pad([ids[i] for i in place[:, used].reshape(-1).tolist()])
        has_image = torch.tensor([each is not None for each in canvases])
        return Batch(
            torch.from_numpy(pixels),
            torch.from_numpy(input_ids),
            torch.from_numpy(attention_mask),
            None if patches is None else patches[torch.from_numpy(rows)],
            None if has_image.all() else has_image,
        )

    def _canvases(self, pair: Pair) -> tuple[Canvas | None, Canvas | None] | None:
        """The letterboxed photo of each side, None for a side without; None where a photo cannot be read."""
        try:
            one, two = (_canvas(each, self.config.preprocessing) for each in pair)
        except InputError as error:
            print(f"left out: the pair of {pair[0].id} and {pair[1].id}: {error}", file=sys.stderr)
            return None
        return one, two


def _canvas(product: Product, preprocessing: Preprocessing) -> Canvas | None:
    return None if product.image is None else read_canvas(product.image, preprocessing)


def decoder_threads() -> int:
    """Threads that decode photos: this process's share of the machine's cores, at most `MAX_DECODERS`."""
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MAX_DECODERS, cores))


def batches(
    pairs: PairStream,
    tokenizer: Tokenizer,
    config: ModelConfig,
    settings: AugmentSettings,
    *,
    batch_pairs: int,
    seed: int,
    start: int,
    stop: int,
    world: World,
) -> Iterator[Batch]:
    """This rank's part of the batches of steps `start` to `stop` - 1, prepared by threads while earlier ones are used.

    Step s gives the same global batch whichever step the run was started at, so that a resumed run sees the same
    data. Pairs that the ranks cannot share equally are left out of their batch.
    """
    last_dropping = round(stop * (1 - WHOLE_IMAGES))
    source = pairs.batches(batch_pairs, seed, start)
    with ThreadPoolExecutor(decoder_threads()) as decoders, ThreadPoolExecutor(1) as assembler:
        maker = BatchMaker(tokenizer, config, settings, seed, decoders)

        def make(step: int) -> Batch:
            chosen = next(source)
            shared = chosen[: len(chosen) // world.size * world.size]
            if len(shared) < 2:
                raise TrainingError(f"a batch of {len(chosen)} pairs is too small for {world.size} ranks")
            dropout = settings.patch_dropout if step < last_dropping else 0.0
            return maker.make(shared, step, world.share(len(shared)), dropout)

        ahead: deque[Future[Batch]] = deque()
        for step in range(start, stop):
            ahead.append(assembler.submit(make, step))
            if len(ahead) > PREFETCH:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

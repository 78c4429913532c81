"""A teacher's answers kept by view and read again: the second student costs no teacher.

Everything random about a sample is a function of (data seed, view, sample), its mixing partner
included, so an answer belongs to (view, sample) for ever. They are stored as float16 logits, one
file a view: 20 bytes a sample of 10 classes, 0.9 MB a view of CIFAR-10. The folder is named by
everything that an answer depends on; what differs in any of it finds nothing there.

Apple's ml-dr and TinyViT (Wu et al., ECCV 2022, arXiv 2207.10666) store by the seed of the
augmentation likewise; a store by sample alone would answer for another crop.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor

from distill.data import cache
from distill.data.loader import Loader, View
from distill.engine.taps import Answer
from distill.engine.teach import Source

FOLDER = "targets"  # below the cache folder
BYTES = 2  # of a float16
FORMAT = 1  # of the files, and of how a sample's draws become pixels: a change empties the store


class Stored:
    """A source that asks another only for what is not stored yet, and stores it.

    An answer is rounded to float16 before it is used the first time too, so that a run gives the
    same weights whatever was stored before it. `identity`: what the answers depend on beside the
    view: teacher, images, precision. A view is written once all its batches were asked, by rank 0,
    as a temporary file that is renamed: a kill leaves no half of one, two writers the same bytes.
    """

    def __init__(
        self, source: Source, loader: Loader, accelerator: Accelerator, identity: dict[str, str]
    ) -> None:
        self.source, self.loader, self.accelerator = source, loader, accelerator
        self.identity = identity
        self.shelves: dict[bool, Shelf] = {}  # by whether the images are mixed

    def mixed(self, view: View, rows: Tensor, images: Tensor) -> Answer:
        shelf = self._shelf(view, mixed=True)
        if not shelf.complete:
            shelf.put(rows, self.source.mixed(view, rows, images).logits)
        return Answer(shelf.get(rows), {})

    def plain(self, view: View, rows: Tensor) -> Tensor:
        shelf = self._shelf(view, mixed=False)
        if not shelf.complete:
            shelf.put(rows, self.source.plain(view, rows))
        return shelf.get(rows)

    def _shelf(self, view: View, *, mixed: bool) -> "Shelf":
        """The view's answers, looked up when its first batch comes."""
        shelf = self.shelves.get(mixed)
        if shelf is None or shelf.view is not view:
            shelf = Shelf(view, self._key(view, mixed), self, mixed)
            self.shelves[mixed] = shelf
        return shelf

    def asks(self, mixed: bool) -> int:
        """How often a process asks in a view: once a part of a batch, twice for pairs."""
        return self.loader.steps_per_epoch * self.loader.part.accumulate * (1 if mixed else 2)

    def _key(self, view: View, mixed: bool) -> str:
        pipeline = view.pipeline if mixed else view.pipeline.without(operations=False, mixing=True)
        depends = self.identity | {
            "format": FORMAT,
            "seed": self.loader.seed,
            "pipeline": repr(pipeline),
        }
        return f"{folder_of(depends)}/view-{view.number:05}"


class Shelf:
    """One view's logits, float16 [N, C] on the device; NaN where nothing is known yet."""

    def __init__(self, view: View, key: str, store: Stored, mixed: bool) -> None:
        self.view, self.key, self.accelerator = view, key, store.accelerator
        self.asks_left = store.asks(mixed)
        shape = tuple(store.loader.targets.shape)
        wanted = _wanted(view, store.loader, mixed=mixed)
        found = cache.recall(key, shape, np.float16)
        whole = found is not None and not np.isnan(found[wanted]).any()
        self.complete = bool(broadcast_object_list([whole])[0])  # rank 0 decides for all
        logits = np.full(shape, np.nan, np.float16) if found is None else found
        self.logits = torch.from_numpy(logits).to(store.accelerator.device)

    def put(self, rows: Tensor, logits: Tensor) -> None:
        self.logits[rows.to(self.logits.device)] = logits.half()
        self.asks_left -= 1
        if not self.asks_left:
            self._write()

    def get(self, rows: Tensor) -> Tensor:
        """float32 [b, C]."""
        return self.logits[rows.to(self.logits.device)].float()

    def _write(self) -> None:
        """Every process's rows, put together. One transfer to the host a view."""
        every: Tensor = self.accelerator.gather(self.logits[None])
        self.logits = every.float().nanmean(0).half()  # who knows a row knows the same
        if self.accelerator.is_main_process:
            cache.keep(self.key, self.logits.cpu().numpy())


def _wanted(view: View, loader: Loader, *, mixed: bool) -> NDArray[np.int64]:
    """The samples that an epoch asks for: all but the last partial batch; with their partners."""
    order = view.order[: loader.steps_per_epoch * loader.batch_size]
    return (order if mixed else torch.cat([order, view.partners(order)])).cpu().numpy()


def folder() -> Path:
    """Where all answers lie."""
    return cache.cache_folder() / FOLDER


def folder_of(depends: dict[str, Any]) -> str:
    """The folder of answers that depend on exactly this, below the cache folder."""
    canonical = json.dumps(depends, sort_keys=True)
    return f"{FOLDER}/{hashlib.sha256(canonical.encode()).hexdigest()[:32]}"

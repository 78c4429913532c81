"""Read-through cache of teacher logits, keyed by view and sample.

Everything random about a sample is a function of (data seed, view, sample), its mixing partner
included, so an answer belongs to (view, sample) for ever. They are stored as float16 logits, one
file a view: 20 bytes a sample of 10 classes, 0.9 MB a view of CIFAR-10. The folder is named by
everything that an answer depends on; what differs in any of it finds nothing there.

Apple's ml-dr and TinyViT (Wu et al., ECCV 2022, arXiv 2207.10666) store by the seed of the
augmentation likewise; a store by sample alone would answer for another crop.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from distill.data import array_cache
from distill.data.augment.pipeline import Pipeline
from distill.data.loader import Loader, View
from distill.models.features import ModelOutput
from distill.teacher import cache_files
from distill.teacher.teacher import LogitSource

FORMAT = 2  # of the files, and of how a sample's draws become pixels: a change empties the store
DOUBT = 0.05  # of the range of a batch's logits: what a stored answer may differ from the teacher's


class CachedViews(NamedTuple):
    """How many views are wanted, can be read, whole or in part, and are there but damaged."""

    wanted: int
    found: int
    damaged: int


class ViewOrigin(NamedTuple):
    """Of a view's logits: what they depend on beside the view, and the TOML of a recipe that asks
    for them.
    """

    identity: dict[str, str]
    recipe: str


class CachedTeacher:
    """A source that asks another only for what is not stored yet, and stores it.

    An answer is rounded to float16 before it is used the first time too, so that a run gives the
    same weights whatever was stored before it. `identity`: what the answers depend on beside the
    view: teacher, images, precision. `recipe`: TOML, written beside the answers. `origin`: both by
    the view's number, if views have teachers of their own. `pairs`: whether images are asked before
    they are mixed. A view is written when all its batches were asked, and
    with every checkpoint what is known of it, by rank 0, as a temporary file that is renamed: a run
    that is resumed finds what it had asked, and two writers write the same bytes.
    """

    is_cached = True

    def __init__(
        self,
        source: LogitSource,
        loader: Loader,
        accelerator: Accelerator,
        identity: dict[str, str],
        *,
        recipe: str = "",
        pairs: bool = False,
        origin: Callable[[int], ViewOrigin] | None = None,
    ) -> None:
        self.source, self.loader, self.accelerator = source, loader, accelerator
        self.origin = origin or (lambda view: ViewOrigin(identity, recipe))
        self.mixed_asked = not pairs
        self.view_caches: dict[bool, ViewCache] = {}  # by whether the images are mixed
        self.trusted = True

    def mixed(self, view: View, rows: Tensor, images: Tensor) -> ModelOutput:
        cache = self._view_cache(view, mixed=True)
        if not cache.complete:
            cache.put(rows, self.source.mixed(view, rows, images).logits)
        return ModelOutput(cache.get(rows), {})

    def unmixed(self, view: View, rows: Tensor) -> Tensor:
        cache = self._view_cache(view, mixed=False)
        if not cache.complete:
            cache.put(rows, self.source.unmixed(view, rows))
        return cache.get(rows)

    @property
    def is_fully_cached(self) -> bool:
        """Whether the views that come again and again are all there, every sample of each, with
        images of every side.
        """
        schedule = self.loader.schedule
        if schedule.views is None or not self.mixed_asked:
            return False
        return all(self._has_all(schedule.views, side) for _, side in schedule.spans)

    def _has_all(self, views: int, side: int | None) -> bool:
        """Whether so many views with images of one side are all there."""
        with self.loader.at_side(side):
            return all(
                self._view_cache(self.loader.view(epoch), mixed=True).complete
                for epoch in range(views)
            )

    def save(self) -> None:
        """Write what was asked since the last time. Called by all processes."""
        for cache in self.view_caches.values():
            if cache.has_news:
                cache.write()

    def count_views(self, epochs: int) -> CachedViews:
        """What is there of the views of so many epochs. Reads every file once."""
        shape = tuple(self.loader.targets.shape)
        keys = list(self._keys(epochs))
        kept = [key for key in keys if array_cache.is_cached(key)]
        readable = sum(array_cache.load_cached(key, shape, np.float16) is not None for key in kept)
        return CachedViews(len(keys), readable, len(kept) - readable)

    def folders(self, epochs: int) -> list[Path]:
        """The cache folder, and those below it with the files of the views of so many epochs."""
        top = array_cache.cache_folder()
        return [
            top,
            cache_files.logits_folder(),
            *sorted({(top / key).parent for key in self._keys(epochs)}),
        ]

    def mismatched_keys(self) -> list[str]:
        """In what the nearest stored answers differ from those of the first view; empty where there
        are none.
        """
        return cache_files.mismatched_keys(
            self.depends_on(0, self.loader.pipeline, mixed=self.mixed_asked)
        )

    def matches_teacher(self, step: int) -> bool | None:
        """Whether the teacher still says of a step's first rows what is stored of them.

        None where nothing is. What disagrees is not used, nor is anything else that is stored: the
        teacher is asked again. One forward pass.
        """
        view, rows = self.loader.batches(step)[0]
        cache = self._view_cache(view, mixed=self.mixed_asked)
        if not cache.complete:
            return None
        self.trusted = on_all_processes(logits_match(self.recompute(view, rows), cache.get(rows)))
        if not self.trusted:
            self.view_caches.clear()
        return self.trusted

    def recompute(self, view: View, rows: Tensor) -> Tensor:
        """What the source says today, logits [b, C], whatever is stored."""
        if not self.mixed_asked:
            return self.source.unmixed(view, rows)
        images, targets = self.loader.augment(view, rows), self.loader.one_hot(rows)
        images, _ = self.loader.mix(view, rows, images, targets)
        return self.source.mixed(view, rows, self.loader.resized(view, images)).logits

    def depends_on(self, view: int, pipeline: Pipeline, *, mixed: bool) -> dict[str, Any]:
        """All that an answer to a view depends on beside its view and sample."""
        seen = pipeline if mixed else pipeline.without(operations=False, mixing=True)
        return self.origin(view).identity | {
            "format": FORMAT,
            "seed": self.loader.seed,
            "pipeline": repr(seen),
        }

    def requests_per_view(self, mixed: bool) -> int:
        """How often a process asks in a view: once a part of a batch, twice for pairs."""
        return self.loader.steps_per_epoch * self.loader.part.accumulate * (1 if mixed else 2)

    def key(self, view: int, pipeline: Pipeline, *, mixed: bool) -> str:
        """Where the answers to a view lie."""
        depends = self.depends_on(view, pipeline, mixed=mixed)
        return f"{cache_files.cache_key(depends)}/{cache_files.view_name(view)}"

    def _keys(self, epochs: int) -> Iterator[str]:
        """Of the views of so many epochs, each once."""
        schedule = self.loader.schedule
        views = {
            (schedule.view(epoch), schedule.pipeline(self.loader.pipeline, epoch))
            for epoch in range(epochs)
        }
        return (self.key(view, pipeline, mixed=self.mixed_asked) for view, pipeline in views)

    def _view_cache(self, view: View, *, mixed: bool) -> "ViewCache":
        """The view's answers, looked up when its first batch comes."""
        cache = self.view_caches.get(mixed)
        if cache is None or cache.view is not view:
            if cache is not None and cache.has_news:
                cache.write()
            cache = ViewCache(view, self, mixed)
            self.view_caches[mixed] = cache
        return cache


def on_all_processes(here: bool) -> bool:
    """Whether it is so for all processes: on several machines each may have a store of its own."""
    return all(gather_object([here]))


def logits_match(computed: Tensor, cached: Tensor) -> bool:
    """Whether logits [b, C] are those that were kept, but for rounding and the device's own."""
    return bool((computed - cached).abs().max() <= DOUBT * (computed.max() - computed.min()))


class ViewCache:
    """One view's logits, float16 [N, C] on the device; NaN where nothing is known yet."""

    def __init__(self, view: View, stored: CachedTeacher, mixed: bool) -> None:
        self.view, self.stored, self.mixed = view, stored, mixed
        self.key = stored.key(view.number, view.pipeline, mixed=mixed)
        self.asks_left = stored.requests_per_view(mixed)
        self.has_news = False
        shape = tuple(stored.loader.targets.shape)
        self.wanted = _required_samples(view, stored.loader, mixed=mixed)
        found = array_cache.load_cached(self.key, shape, np.float16) if stored.trusted else None
        whole = found is not None and not np.isnan(found[self.wanted]).any()
        self.complete = on_all_processes(whole)
        logits = np.full(shape, np.nan, np.float16) if found is None else found
        self.logits = torch.from_numpy(logits).to(stored.accelerator.device)

    def put(self, rows: Tensor, logits: Tensor) -> None:
        self.logits[rows.to(self.logits.device)] = logits.half()
        self.has_news = True
        self.asks_left -= 1
        if not self.asks_left:
            self.write()

    def get(self, rows: Tensor) -> Tensor:
        """float32 [b, C]."""
        return self.logits[rows.to(self.logits.device)].float()

    def write(self) -> None:
        """Every process's rows, put together: one transfer to the host. Called by all processes."""
        accelerator = self.stored.accelerator
        every: Tensor = accelerator.gather(self.logits[None])
        self.logits = every.float().nanmean(0).half()  # who knows a row knows the same
        kept = self.logits.cpu().numpy()
        self.complete, self.has_news = not np.isnan(kept[self.wanted]).any(), False
        if accelerator.is_main_process:
            number, stored = self.view.number, self.stored
            depends = stored.depends_on(number, self.view.pipeline, mixed=self.mixed)
            cache_files.write_description(depends, stored.origin(number).recipe)
            array_cache.save_cached(self.key, kept)


def _required_samples(view: View, loader: Loader, *, mixed: bool) -> NDArray[np.int64]:
    """The samples that an epoch asks for: all but the last partial batch; with their partners."""
    order = view.order[: loader.steps_per_epoch * loader.batch_size]
    return (order if mixed else torch.cat([order, view.partners(order)])).cpu().numpy()

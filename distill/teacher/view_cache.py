"""Read-through cache of teacher logits, keyed by view and sample.

Everything random about a sample, including its mixing partner, is a function of (data seed, view,
sample), so the logits of a sample in a view never change. They are cached as float16, one file per
view: 20 bytes per sample with 10 classes, 0.9 MB per view of CIFAR-10. The folder's name is a
digest of everything else that the logits depend on; if any of it changes, another folder is used.

Apple's ml-dr and TinyViT (Wu et al., ECCV 2022, arXiv 2207.10666) also cache by the seed of the
augmentation; a cache by sample alone would return the logits of another crop.
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
from distill.data.augment.augment_schedule import Pipeline
from distill.data.loader import Loader, View
from distill.models.features import ModelOutput
from distill.teacher import cache_files
from distill.teacher.teacher import LogitSource

# Part of every cache key. To be raised if the files' format or the augmentations change, so that no
# older entry is read.
FORMAT = 2
DOUBT = 0.05  # allowed difference of cached and computed logits, relative to the range of a batch


class CachedViews(NamedTuple):
    """How many views a run needs, how many are cached, and how many cached ones are damaged."""

    wanted: int
    found: int  # files that can be read; their logits may be incomplete
    damaged: int


class ViewOrigin(NamedTuple):
    """What the logits of a view depend on besides the view itself."""

    identity: dict[str, str]  # fingerprints of teacher and images, precision, …, by name
    recipe: str  # TOML of a recipe that uses these logits


class CachedTeacher:
    """Returns teacher logits from the cache; computes and caches missing ones.

    Logits are rounded to float16 before their first use too, so that a run ends with the same
    weights whatever was cached before it. Rank 0 writes a view when all its batches are computed,
    and a partial view with every checkpoint. Files are written under a temporary name and renamed;
    a resumed run reads them again.

    `source`: computes missing logits. `identity`: what the logits depend on besides the view:
    teacher, images, precision. `recipe`: TOML of the recipe, written beside the logits. `pairs`:
    whether to cache the logits of the images before mixing instead of the mixed images. `origin`: a
    function from a view's number to identity and recipe, if views have different teachers. Raises
    UserError if the folder that contains all cache entries is a symbolic link.
    """

    uses_cache = True

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
        cache_files.check_not_linked()
        self.source, self.loader, self.accelerator = source, loader, accelerator
        self.origin = origin or (lambda view: ViewOrigin(identity, recipe))
        self.caches_mixed = not pairs
        self.view_caches: dict[bool, ViewCache] = {}  # by whether the images are mixed
        self.trusted = True  # whether cached logits are read; False once they differ from computed

    def mixed_outputs(self, view: View, rows: Tensor, images: Tensor) -> ModelOutput:
        cache = self._view_cache(view, mixed=True)
        if not cache.complete:
            cache.put(rows, self.source.mixed_outputs(view, rows, images).logits)
        return ModelOutput(cache.get(rows), {})

    def unmixed_logits(self, view: View, rows: Tensor) -> Tensor:
        cache = self._view_cache(view, mixed=False)
        if not cache.complete:
            cache.put(rows, self.source.unmixed_logits(view, rows))
        return cache.get(rows)

    @property
    def is_fully_cached(self) -> bool:
        """Whether every view that the run repeats is completely cached at every image size.

        False if views never repeat, or if logits are cached before mixing.
        """
        schedule = self.loader.schedule
        if schedule.views is None or not self.caches_mixed:
            return False
        return all(self._has_all(schedule.views, side) for _, side in schedule.image_sizes)

    def _has_all(self, views: int, side: int | None) -> bool:
        """Whether the first `views` views are completely cached for image size `side` in pixels."""
        with self.loader.at_side(side):
            return all(
                self._view_cache(self.loader.view(epoch), mixed=True).complete
                for epoch in range(views)
            )

    def save(self) -> None:
        """Write the logits computed since the last call. Called by all processes."""
        for cache in self.view_caches.values():
            if cache.is_unsaved:
                cache.write()

    def count_views(self, epochs: int) -> CachedViews:
        """Count the views of the first `epochs` epochs by whether they are cached. Reads every file
        once.
        """
        shape = tuple(self.loader.targets.shape)
        keys = list(self._keys(epochs))
        cached = [key for key in keys if array_cache.is_cached(key)]
        readable = sum(
            array_cache.load_cached(key, shape, np.float16) is not None for key in cached
        )
        return CachedViews(len(keys), readable, len(cached) - readable)

    def folders(self, epochs: int) -> list[Path]:
        """Return the user's cache folder and the folders in it that the first `epochs` epochs
        use.
        """
        top = array_cache.cache_folder()
        return [
            top,
            cache_files.logits_folder(),
            *sorted({(top / key).parent for key in self._keys(epochs)}),
        ]

    def mismatched_keys(self) -> list[str]:
        """Return the keys in which the most similar cache entry differs from the entry that this
        run needs for its first view.

        Empty if the cache has no entry.
        """
        return cache_files.mismatched_keys(
            self.depends_on(0, self.loader.pipeline, mixed=self.caches_mixed)
        )

    def matches_teacher(self, step: int) -> bool | None:
        """Whether the teacher's logits for the first micro-batch of a step equal the cached ones.

        Returns None if the step's view is not completely cached. If the logits differ, the cache is
        no longer read, and the teacher computes all logits again. Costs one forward pass.
        """
        view, rows = self.loader.batches(step)[0]
        cache = self._view_cache(view, mixed=self.caches_mixed)
        if not cache.complete:
            return None
        self.trusted = on_all_processes(logits_match(self.recompute(view, rows), cache.get(rows)))
        if not self.trusted:
            self.view_caches.clear()
        return self.trusted

    def recompute(self, view: View, rows: Tensor) -> Tensor:
        """Return the logits [b, C] of the samples with indices `rows` [b] in a view, computed
        without reading the cache.
        """
        if not self.caches_mixed:
            return self.source.unmixed_logits(view, rows)
        return self.source.mixed_outputs(view, rows, self.loader.batch(view, rows).images).logits

    def depends_on(self, view: int, pipeline: Pipeline, *, mixed: bool) -> dict[str, Any]:
        """Return everything that a view's logits depend on besides view and sample, by name.

        `pipeline`: the view's augmentations. `mixed`: whether the logits are of the mixed images;
        if not, the mixing is left out.
        """
        used = pipeline if mixed else pipeline.without(operations=False, mixing=True)
        return self.origin(view).identity | {
            "format": FORMAT,
            "seed": self.loader.seed,
            "pipeline": repr(used),
        }

    def requests_per_view(self, mixed: bool) -> int:
        """Return how often a process requests logits of a view in an epoch.

        Once per micro-batch, or twice if the logits of both images of mixed pairs are needed.
        """
        return self.loader.steps_per_epoch * self.loader.part.accumulate * (1 if mixed else 2)

    def key(self, view: int, pipeline: Pipeline, *, mixed: bool) -> str:
        """Return the path of a view's logits, relative to the user's cache folder, without
        suffix.
        """
        depends = self.depends_on(view, pipeline, mixed=mixed)
        return f"{cache_files.cache_key(depends)}/{cache_files.view_name(view)}"

    def _keys(self, epochs: int) -> Iterator[str]:
        """Yield the cache key of each view of the first `epochs` epochs, without repetitions."""
        schedule = self.loader.schedule
        views = {
            (schedule.view(epoch), schedule.pipeline(self.loader.pipeline, epoch))
            for epoch in range(epochs)
        }
        return (self.key(view, pipeline, mixed=self.caches_mixed) for view, pipeline in views)

    def _view_cache(self, view: View, *, mixed: bool) -> "ViewCache":
        """Return the cache of a view. It is read from disk for the first batch of the view, and the
        cache of the previous view is written then.
        """
        cache = self.view_caches.get(mixed)
        if cache is None or cache.view is not view:
            if cache is not None and cache.is_unsaved:
                cache.write()
            cache = ViewCache(view, self, mixed)
            self.view_caches[mixed] = cache
        return cache


def on_all_processes(here: bool) -> bool:
    """Whether `here` is true on all processes. They may disagree: each machine may have a cache of
    its own.
    """
    return all(gather_object([here]))


def logits_match(computed: Tensor, cached: Tensor) -> bool:
    """Whether computed logits [b, C] equal cached ones, up to rounding and device differences.

    They may differ by DOUBT (5 %) of the range of the computed logits.
    """
    return bool((computed - cached).abs().max() <= DOUBT * (computed.max() - computed.min()))


class ViewCache:
    """Holds the logits of one view, float16 [N, C] on the device; NaN if not computed yet."""

    def __init__(self, view: View, teacher: CachedTeacher, mixed: bool) -> None:
        self.view, self.teacher, self.mixed = view, teacher, mixed
        self.key = teacher.key(view.number, view.pipeline, mixed=mixed)
        self.batches_left = teacher.requests_per_view(mixed)
        self.is_unsaved = False
        shape = tuple(teacher.loader.targets.shape)
        self.required = _required_samples(view, teacher.loader, mixed=mixed)
        found = array_cache.load_cached(self.key, shape, np.float16) if teacher.trusted else None
        is_whole = found is not None and not np.isnan(found[self.required]).any()
        self.complete = on_all_processes(is_whole)
        logits = np.full(shape, np.nan, np.float16) if found is None else found
        self.logits = torch.from_numpy(logits).to(teacher.accelerator.device)

    def put(self, rows: Tensor, logits: Tensor) -> None:
        """Store the logits [b, C] of the samples with indices `rows` [b]; write the view after its
        last batch.
        """
        self.logits[rows.to(self.logits.device)] = logits.half()
        self.is_unsaved = True
        self.batches_left -= 1
        if not self.batches_left:
            self.write()

    def get(self, rows: Tensor) -> Tensor:
        """Return the logits of the samples with indices `rows` [b], float32 [b, C]; NaN if not
        computed yet.
        """
        return self.logits[rows.to(self.logits.device)].float()

    def write(self) -> None:
        """Gather the logits of all processes and write them to the view's file.

        Called by all processes. Costs one transfer to the host.
        """
        accelerator = self.teacher.accelerator
        gathered: Tensor = accelerator.gather(self.logits[None])
        # Rows that several processes computed are equal, so that their mean changes nothing.
        self.logits = gathered.float().nanmean(0).half()
        logits = self.logits.cpu().numpy()
        self.complete, self.is_unsaved = not np.isnan(logits[self.required]).any(), False
        if accelerator.is_main_process:
            number, teacher = self.view.number, self.teacher
            depends = teacher.depends_on(number, self.view.pipeline, mixed=self.mixed)
            cache_files.write_description(depends, teacher.origin(number).recipe)
            array_cache.save_cached(self.key, logits)


def _required_samples(view: View, loader: Loader, *, mixed: bool) -> NDArray[np.int64]:
    """Return the indices of the samples whose logits an epoch needs: those of its batches.

    If the logits are computed before mixing, also the samples that these are mixed with.
    """
    order = view.order[: loader.steps_per_epoch * loader.batch_size]
    return (order if mixed else torch.cat([order, view.partners(order)])).cpu().numpy()

"""How far a whole run is: its stages' own progress, weighed by the image passes that each is expected to take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from debride.inversion.invert import planned_steps
from debride.inversion.survey import planned_passes
from debride.loading import Loaded
from debride.retraining import expected_passes as of_retraining
from debride.retraining import passes_of_relearning
from debride.rounds import expected_passes as of_pruning
from debride.settings import Settings
from debride.stages import passes_of_suspect
from debride.types import WHOLE, Progress


@dataclass(slots=True)
class Overall:
    """A `Progress` that tells `progress` how far the whole run is (as the stage `WHOLE`), then what it is told itself.

    `plan` says by the word that a stage's name begins with what it is expected to take, in any unit and in their order.
    A stage that was passed over counts as done once a later one begins.
    """

    progress: Progress
    plan: Mapping[str, float]
    _reached: float = field(default=0.0, init=False)

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Tells of the whole, then hands it on."""
        place = max((name for name in self.plan if stage.startswith(name)), key=len, default=None)
        if place is not None and total:
            names = list(self.plan)
            before = sum(self.plan[name] for name in names[: names.index(place)])
            self._reached = max(self._reached, before + self.plan[place] * min(1.0, done / total))
            self.progress(WHOLE, round(self._reached), round(sum(self.plan.values())))
        self.progress(stage, done, total, note)

    def end(self) -> None:
        """Tells that the run has ended, whatever of the plan it passed over."""
        total = round(sum(self.plan.values()))
        self.progress(WHOLE, total, total)


def scanning(loaded: Loaded, settings: Settings) -> dict[str, float]:
    """What the stages of a scan are expected to take, in image passes."""
    return dict(planned_passes(loaded.n_classes, settings.inversion))


def cleaning(loaded: Loaded, settings: Settings, *, pruning: bool) -> dict[str, float]:
    """What those after a scan are expected to take where one class is a suspect."""
    wanted = settings.retrain != "never"
    return {
        "inversion of class": passes_of_suspect(settings),
        "pruning": of_pruning(loaded) if pruning else 0.0,
        "retraining": of_retraining(loaded, settings, light=pruning) if wanted else 0.0,
        **anew(settings, 1 if wanted else 0),
        "relearning": passes_of_relearning(loaded) if wanted else 0.0,
    }


def anew(settings: Settings, classes: int) -> dict[str, float]:
    """What the inversion of so many `classes` of the retrained network is expected to take."""
    options = settings.inversion
    return {"inversion anew": float(classes * planned_steps(options) * options.images)}

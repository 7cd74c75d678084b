"""From trained models to submission files, plain or corrected by CAN (S01, S11).

    best/ ──▶ model ──one pass over the split──▶ outputs ──decode──▶ predictions ──▶ submission
                                                    └────CAN───────────▲        and record

All that can be wrong with models, priors and options is found before the first pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kexue.models.saving import read_purpose
from kexue.tasks.clue import examples, make_task
from kexue.tasks.clue.can import Correction, correct, with_classes, write_record
from kexue.tasks.clue.can_options import CANOptions
from kexue.tasks.clue.class_prior import ClassPrior, find_prior
from kexue.tasks.clue.classification import Classification
from kexue.tasks.clue.predict import load_trained, split_features, split_outputs
from kexue.tasks.clue.sources import Source, open_source
from kexue.training.processes import processes

__all__ = ["CANRequest", "Submitted", "submit"]


@dataclass(frozen=True, slots=True)
class CANRequest:
    """That CAN be applied, and how.

    Args:
        prior: "uniform", a file for `class_prior.read_prior`, or None: the training labels.
        options: of CAN.
    """

    prior: str | None = None
    options: CANOptions = field(default_factory=CANOptions)


@dataclass(frozen=True, slots=True)
class Submitted:
    """One task's submission file and, where CAN was applied, what it did."""

    path: Path
    correction: Correction | None

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {"written": str(self.path), "can": self.correction and self.correction.record()}


def submit(
    models: Mapping[str, Path],
    data: str | Path,
    out: Path,
    *,
    split: str = "test",
    version: str = "1.1",
    can: CANRequest | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Submitted]:
    """Writes the submission file of each task and checks it.

    Args:
        models: task name → best/ folder of a run.
        data: "mini", "hub", "hub:NAME" or a folder.
        out: the folder of the files; those of the dev split begin with dev_.
        split: "test" or "dev".
        version: which test files, "1.0" or "1.1".
        can: None: predictions as they are. Among several tasks those without classes are left
            as they are; where no task has classes, it is refused.
        say: receives remarks, one line each.

    Raises:
        DataError: something in the data or the prior is not as it must be.
        CheckpointError: a folder is no trained model.
        ValueError: a model of another task; a split without a submission; nothing for CAN to do.
    """
    if split not in ("dev", "test"):
        raise ValueError(f"split must be dev or test, got {split!r}")
    source = open_source(data)
    for name, folder in models.items():
        if (trained := read_purpose(folder)["task"]) != name:
            raise ValueError(f"{folder}: was trained for {trained}, not for {name}")
    priors = {} if can is None else find_priors(models, source, can)
    written = {}
    for name, folder in models.items():
        task, network = load_trained(folder, version=version)
        network.to(processes().device)
        found: list[Any] = list(examples(task, source, split))
        remarks: list[str] = []
        features = split_features(task, source, split, remarks)
        outputs = split_outputs(task, network, features)
        predictions, correction = task.decode(found, outputs), None
        remarks += [f"predictions: {text} ({count})" for text, count in task.notes.items()]
        if can is not None and name in priors:
            classes = with_classes(task)
            correction = correct(classes, found, outputs, priors[name], can.options)
            predictions = correction.predictions
            remarks += [f"CAN: {note}" for note in correction.notes]
        elif can is not None:
            remarks.append("has no fixed classes; CAN was not applied")
        for remark in dict.fromkeys(remarks):
            say(f"{name}: {remark}")
        prefix = "" if split == "test" else f"{split}_"  # not to be mistaken for the real thing
        path = out / f"{prefix}{task.submission_name}"
        task.write_submission(path, found, predictions)
        facts = {"task": name, "split": split, "data": str(data), "model": str(folder)}
        write_record(path, correction, **facts)
        task.read_submission(path, found)
        written[name] = Submitted(path, correction)
    return written


def find_priors(
    models: Mapping[str, Path], source: Source, can: CANRequest
) -> dict[str, ClassPrior]:
    """The priors of those tasks that have classes, known to give each class a share.

    Raises:
        DataError: as `find_prior`.
        ValueError: no task has classes; one file of classes for several tasks.
    """
    tasks = [make_task(name) for name in models]
    found = [task for task in tasks if isinstance(task, Classification)]
    if not found:
        with_classes(tasks[0])
    if len(tasks) > 1 and can.prior not in (None, "uniform"):
        raise ValueError(
            f"--can-prior {can.prior}: a file is for the classes of one task, and {len(tasks)} "
            "are to be predicted; give --can-prior uniform, or predict one task at a time"
        )
    priors = {}
    for task in found:
        priors[task.name] = find_prior(task, can.prior, models[task.name], source)
        priors[task.name].probabilities(can.options.pseudo_count)
    return priors

"""The bridge to EleutherAI's lm-evaluation-harness: its tasks, its model wrapper, its scores, unchanged."""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropescope.base.arguments import check_at_least, check_batch_size
from ropescope.base.errors import InputError, TaskError, did_you_mean, first_line
from ropescope.base.extras import require
from ropescope.evaluation.tasks.scores import Evaluated, digest_of, scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
OURS = ("model", "model_args", "tasks", "task_manager", "log_samples", "batch_size", "device", "evaluation_tracker")


@dataclass(frozen=True)
class TaskProtocol:
    """How the harness asks.

    Parameters
    ----------
    num_fewshot
        Examples before each question; None is the task's own number, 0 if it names none.
    limit
        Documents of each task: a number, or a share below 1; None is all.
    batch_size
        Requests in one forward pass, or "auto".
    seed
        Seed of everything random; None is the harness's defaults.
    include_path
        Folder with task files of one's own, which take precedence.
    settings
        Further arguments of ``lm_eval.simple_evaluate``, such as ``{"apply_chat_template": True}``.

    Examples
    --------
    >>> TaskProtocol(num_fewshot=0, limit=500, batch_size=8).arguments()
    {'num_fewshot': 0, 'limit': 500}
    """

    num_fewshot: int | None = None
    limit: float | None = None
    batch_size: int | str = 1
    seed: int | None = None
    include_path: str | Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Give what ``simple_evaluate`` is called with, model and tasks aside.

        Returns
        -------
        dict
            Keyword arguments; every field but the folder and the batch size goes there as it is.

        Examples
        --------
        >>> TaskProtocol(limit=0.1).arguments()
        {'num_fewshot': None, 'limit': 0.1}
        """
        seeds = {} if self.seed is None else dict.fromkeys(SEEDS, self.seed)
        return {"num_fewshot": self.num_fewshot, "limit": self.limit, **seeds, **self.settings}

    def facts(self) -> dict[str, Any]:
        """Give the protocol in values that JSON can hold, with the harness's version.

        Returns
        -------
        dict
            Without the folder: a task counts by its definition, not its place.

        Examples
        --------
        >>> TaskProtocol(limit=500).facts()["limit"]
        500
        """
        return {
            **{"num_fewshot": self.num_fewshot, "limit": self.limit, "batch_size": self.batch_size, "seed": self.seed},
            "settings": json.loads(json.dumps(dict(self.settings), default=str)),
            "lm_eval": version("lm_eval"),
        }


class Harness:
    """The harness around one live model; what is open around the model (weighting, derotation) is what it sees.

    Raises
    ------
    TaskError
        If the harness is not installed, or a setting is none of its own.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, protocol: TaskProtocol) -> None:
        check_installed()
        check_protocol(protocol)
        _check_settings(protocol.settings)
        from lm_eval.models.huggingface import HFLM

        from ropescope.model.loading import quiet

        self.protocol = protocol
        self.manager = task_manager(protocol.include_path)
        with quiet():
            # it gives a tokenizer without padding a padding token
            self.wrapped = HFLM(
                pretrained=model,
                tokenizer=copy.deepcopy(tokenizer),
                backend="causal",
                batch_size=protocol.batch_size,
            )

    def check(self, tasks: Sequence[str]) -> None:
        """Raise TaskError if a task is unknown, naming those of near names."""
        check_protocol(self.protocol, tasks)
        for task in tasks:
            if task not in self.manager.task_index and not Path(task).is_file():
                near = get_close_matches(task, self.manager.all_tasks, n=4, cutoff=0.5)
                hint = f"did you mean {' or '.join(near)}?" if near else "'lm_eval ls tasks' lists all"
                raise TaskError(f"lm-evaluation-harness has no task {task!r}: {hint}")

    def definition(self, task: str) -> str:
        """SHA-256 of a task as it is defined; the documents that it reads are not looked at."""
        file = Path(task)
        found: Any = file.read_text() if file.is_file() else _definitions(self.manager.task_index, task)
        content = json.dumps([task, found, _code_of(self.protocol.include_path)], default=str, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def evaluate(self, task: str, progress: bool = False) -> Evaluated:
        """Run one task, group or tag.

        Raises
        ------
        TaskError
            If its documents cannot be reached, or it fails for another reason.
        """
        import lm_eval

        from ropescope.model.loading import quiet

        try:
            with (
                quiet(),
                _leading(),
                _without_surroundings(),
                nullcontext() if progress else redirect_stderr(io.StringIO()),
            ):
                found = lm_eval.simple_evaluate(
                    model=self.wrapped,
                    tasks=[task],
                    task_manager=self.manager,
                    batch_size=self.protocol.batch_size,
                    log_samples=True,
                    **self.protocol.arguments(),
                )
        except Exception as error:  # a task may run any code of its own
            raise TaskError(_failure(task, error)) from error
        return Evaluated(tuple(scores(found)), digest_of(found["samples"]), found["samples"])


def check_installed() -> None:
    """Raise MissingExtraError unless lm-evaluation-harness can be imported."""
    require("tasks", "running tasks (lm-evaluation-harness)")


def check_protocol(protocol: TaskProtocol, tasks: Sequence[str] | None = None) -> None:
    """Raise InputError for what is wrong with a protocol, or with there being no task, before the harness is loaded."""
    if tasks is not None and not tasks:
        raise InputError("got no tasks; give at least one name, such as hellaswag")
    check_at_least("num_fewshot", protocol.num_fewshot, 0)
    check_at_least("seed", protocol.seed, 0)
    if protocol.limit is not None and not (0 < protocol.limit < 1 or protocol.limit == int(protocol.limit) >= 1):
        raise InputError(f"limit got {protocol.limit}; it is a number of documents, or a share between 0 and 1")
    if not isinstance(protocol.batch_size, str):
        check_batch_size(protocol.batch_size)
    if protocol.include_path is not None and not Path(protocol.include_path).is_dir():
        raise InputError(f"include_path got {protocol.include_path}, which is no folder; give one with task files")


def task_manager(include_path: str | Path | None) -> Any:
    """The harness's index of tasks, with those of a folder of one's own before its own."""
    from lm_eval.tasks import TaskManager

    from ropescope.model.loading import quiet

    with quiet():
        return TaskManager(include_path=None if include_path is None else str(include_path))


def json_default(value: Any) -> Any:
    """What of a sample JSON cannot hold, as the harness itself writes it."""
    from lm_eval.utils import handle_non_serializable

    return handle_non_serializable(value)


def _definitions(index: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The configuration of a task, or of all tasks in a group or tag, by name."""
    entry = index.get(name)
    if entry is None:
        return {}
    config = entry.cfg or {}
    listed = config.get("task")
    members = [*(listed if isinstance(listed, list) else []), *(entry.tags if entry.cfg is None else [])]
    found = {name: config}
    for member in members:
        found |= _definitions(index, member) if isinstance(member, str) else {str(member): member}
    return found


@contextmanager
def _without_surroundings() -> Iterator[None]:
    """The harness notes git's commit and lists every installed package after each task: seconds that nobody reads.

    Outside a repository git even complains on the terminal by itself.
    """
    from lm_eval import evaluator

    notes = {name: getattr(evaluator, name, None) for name in ("get_git_commit_hash", "add_env_info")}
    for name in notes:
        setattr(evaluator, name, lambda *_: None)
    try:
        yield
    finally:
        for name, own in notes.items():
            setattr(evaluator, name, own)


@contextmanager
def _leading() -> Iterator[None]:
    """The harness gives its results to the first process of a machine only; here each process asks for itself."""
    before = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LOCAL_RANK"]
        else:
            os.environ["LOCAL_RANK"] = before


def _code_of(folder: str | Path | None) -> list[str]:
    """Source of the functions that task files of one's own may call."""
    return [] if folder is None else [file.read_text() for file in sorted(Path(folder).rglob("*.py"))]


def _check_settings(settings: Mapping[str, Any]) -> None:
    import lm_eval

    known = [name for name in inspect.signature(lm_eval.simple_evaluate).parameters if name not in OURS]
    for name in settings:
        if name not in known:
            raise InputError(
                f"settings got {name!r}, which lm-evaluation-harness does not take: {did_you_mean(name, known)}"
            )


def _failure(task: str, error: Exception) -> str:
    reason = f"task {task} failed: {type(error).__name__}: {first_line(error)}"
    if not isinstance(error, OSError):
        return reason
    return (
        f"{reason}; its data set could not be reached: run once where there is a network, or write a task file that "
        "reads local files (dataset_path: json, dataset_kwargs: {data_files: ...}) and give its folder as include_path"
    )

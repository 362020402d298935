"""Task definitions for lm-evaluation-harness that read local copies of HellaSwag, TruthfulQA and MMLU.

``python tests/support/harness_tasks.py DATA FOLDER`` writes them: the harness's own definitions of hellaswag,
truthfulqa_mc1, truthfulqa_mc2 and mmlu, but for where the documents come from.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from checkout import DATA

NAMES = ("hellaswag", "truthfulqa_mc1", "truthfulqa_mc2", "mmlu")


def write_tasks(folder: Path, data: Path = DATA) -> Path:
    """Write task files to `folder`, reading documents from `data`; HellaSwag comes preprocessed."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_hellaswag(folder, data)
    _write_truthfulqa(folder, data)
    _write_mmlu(folder, data)
    return folder


def multiple_choice(name: str, documents: Path, **settings: Any) -> dict[str, Any]:
    """A task of multiple choice on a JSON-lines file."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(documents.resolve())}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        **settings,
    }


def write(folder: Path, task: dict[str, Any]) -> None:
    name = task.get("task") if isinstance(task.get("task"), str) else task["group"]
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task, sort_keys=False, width=1000))


def _write_hellaswag(folder: Path, data: Path) -> None:
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    texts = {"doc_to_text": "{{query}}", "doc_to_target": "{{gold}}", "doc_to_choice": "choices"}
    source = data / "hellaswag" / "validation.jsonl"
    write(folder, multiple_choice("hellaswag", source, **texts, metric_list=metrics))


def _write_truthfulqa(folder: Path, data: Path) -> None:
    rows = json.loads((data / "truthfulqa" / "mc_task.json").read_text())
    documents = folder / "truthfulqa.jsonl"
    with documents.open("w") as file:
        for row in rows:
            targets = {
                name: {"choices": list(row[name]), "labels": list(row[name].values())}
                for name in ("mc1_targets", "mc2_targets")
            }
            file.write(json.dumps({"question": row["question"], **targets}) + "\n")
    from lm_eval.tasks import TaskManager

    index = TaskManager().task_index
    for name in ("truthfulqa_mc1", "truthfulqa_mc2"):
        own = index[name].cfg
        texts = {key: own[key] for key in ("doc_to_text", "doc_to_target", "doc_to_choice", "num_fewshot")}
        write(folder, multiple_choice(name, documents, **texts))
    module = Path(index["truthfulqa_mc2"].yaml_path).with_name("utils.py")
    with (folder / "truthfulqa_mc2.yaml").open("a") as file:
        file.write("process_results: !function truthfulqa_utils.process_results_mc2\n")
    (folder / "truthfulqa_utils.py").write_text(module.read_text())


def _write_mmlu(folder: Path, data: Path) -> None:
    rows = {name: _by_subject(data / "mmlu" / f"{name}.jsonl") for name in ("test", "dev")}
    for subject in rows["test"]:
        files = {}
        for split, of in rows.items():
            files[split] = folder / f"mmlu_{subject}.{split}.jsonl"
            files[split].write_text("".join(of[subject]))
        write(folder, _mmlu_task(subject, files))
    group = {"group": "mmlu", "task": [f"mmlu_{subject}" for subject in rows["test"]]}
    write(folder, group | {"aggregate_metric_list": [{"metric": "acc", "weight_by_size": True}]})


def _mmlu_task(subject: str, files: dict[str, Path]) -> dict[str, Any]:
    letters = "\n".join(f"{letter}. {{{{choices[{place}]}}}}" for place, letter in enumerate("ABCD"))
    title = subject.replace("_", " ")
    return multiple_choice(
        f"mmlu_{subject}",
        files["test"],
        dataset_kwargs={"data_files": {split: str(path.resolve()) for split, path in files.items()}},
        fewshot_split="dev",
        fewshot_config={"sampler": "first_n"},
        description=f"The following are multiple choice questions (with answers) about {title}.\n\n",
        doc_to_text="{{question.strip()}}\n" + letters + "\nAnswer:",
        doc_to_choice=list("ABCD"),
        doc_to_target="answer",
    )


def _by_subject(path: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    with path.open() as file:
        for line in file:
            found.setdefault(json.loads(line)["subject"], []).append(line)
    return found


if __name__ == "__main__":
    print(write_tasks(Path(sys.argv[2]), Path(sys.argv[1])))

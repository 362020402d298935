"""Measure the three real models by the command alone, and write a page of each, and one that sets them side by side.

    python docs/_build/gallery.py                                  all of it, on texts of the hub
    python docs/_build/gallery.py --texts DATA --models smollm2    one model, on local copies of the texts
    python docs/_build/gallery.py --pages                          only the pages, of what is there

Each step is a command of ropescope, and is left out where its output was kept; the same call after an interruption
goes on within the step. Files lie under gallery/MODEL, the pages and their pictures under docs/models.
To measure anew delete the folder, or one step's .txt and its file.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from gallery_pages import write_pages

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "gallery"


@dataclass(frozen=True)
class Model:
    """A trained model of the gallery.

    Parameters
    ----------
    name, title
        The name of its folder and page, and its own.
    source
        Where it comes from, seen from its folder.
    looked
        Tokens of the windows in which it is looked at for the claims: a quarter of its context, as the claim on pairs
        past the band asks, where hours allow it.
    """

    name: str
    title: str
    source: str
    looked: int = 1024


MODELS = {
    model.name: model
    for model in (
        Model("smollm2", "SmolLM2-135M-Instruct", "builtin", looked=2048),
        Model("gemma3", "Gemma-3-270M", "../../models/gemma-3-270m-Q4_K_M.gguf"),
        Model("qwen25", "Qwen2.5-Coder-0.5B-Instruct", "../../models/qwen2.5-coder-0.5b-instruct-Q4_K_M.gguf"),
    )
}


@dataclass(frozen=True)
class Texts:
    """The options that name each text: of the hub, or local copies under a folder."""

    measured: tuple[str, ...] = ("--corpus", "wikitext", "--split", "validation")
    judged: tuple[str, ...] = ("--corpus", "wikitext", "--split", "test")
    other: tuple[str, ...] = ("--corpus", "c4")
    calibrated: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()

    @classmethod
    def under(cls, data: Path) -> Texts:
        """WikiText, C4 and the task files of `tests/support/harness_tasks.py`, as a folder of local copies has them."""
        validation, test = (str(data / "wikitext" / f"wiki.{split}.raw") for split in ("valid", "test"))
        return cls(
            ("--corpus", validation),
            ("--corpus", test),
            ("--corpus", str(next((data / "c4").glob("*.json*")))),
            ("--calibration-corpus", validation),
            ("--include-path", str(FOLDER / "tasks")),
        )


def steps(model: Model, texts: Texts) -> dict[str, list[str]]:
    """The commands of one model by the name of the step, in their order; each runs in the model's folder."""
    source, plain = model.source, ("--dtype", "float32", "--output")
    alphas = ("--alphas", "0", "0.5", "--control-alphas", "0")
    judged = (*texts.judged, "--length", "512", "--count", "8")
    measured = ["wikitext.nc", "c4.nc", "long.nc", "worth.nc", "sweep.nc", "tasks.nc"]
    looked = ("--model", source, *texts.judged, "--length", str(model.looked), "--count", "5")
    return {
        "inspect": ["inspect", source, "--dtype", "float32"],
        "wikitext": ["measure", source, *texts.measured, "--count", "8", *plain, "wikitext.nc"],
        "c4": ["measure", source, *texts.other, "--count", "8", *plain, "c4.nc"],
        "long": ["measure", source, *texts.measured, "--length", "8192", "--count", "5", *plain, "long.nc"],
        "worth": ["importance", source, *texts.measured, "--length", "1024", "--count", "9", *plain, "worth.nc"],
        "sweep": ["sweep", source, "wikitext.nc", *judged, *alphas, *plain, "sweep.nc"],
        "derotated": ["sweep", source, "wikitext.nc", "--derotate", *judged, "--alphas", "0", *plain, "derotated.nc"],
        "tasks": [
            *("tasks", source, "wikitext.nc", "--select", "table1", "--alpha", "0.1", "--tasks", "hellaswag"),
            *("--limit", "250", "--batch-size", "8", *texts.documents, *plain, "tasks.nc"),
        ],
        "thin": [
            *("compress", source, *texts.judged, "--length", "1024", "--count", "8", *texts.calibrated),
            *("--keep", "0.75", "0.5", "0.25", "--method", "latent", "--baselines", "norm-product"),
            *("--result", "wikitext.nc", *plain, "thin.nc"),
        ],
        "claims": [
            *("claims", *measured, *looked, "--look", "look.nc", "--dtype", "float32"),
            *("--format", "markdown", "--output", "claims.md"),
        ],
        "same-places": [
            *("compare", "wikitext.nc", "c4.nc", "long.nc", "--label", "WikiText", "C4", "long WikiText"),
            *("--output-dir", "same-places"),
        ],
        "figures": [
            *("figures", "wikitext.nc", "sweep.nc", "thin.nc", "--label", *(model.title,) * 3),
            *("--importance", "worth.nc", "--output-dir", "figures"),
        ],
        "report": [
            *("report", *measured, "derotated.nc", "look.nc", "thin.nc"),
            *("--output", "report.html", "--overwrite"),
        ],
    }


def run(model: Model, texts: Texts, wanted: list[str]) -> None:
    """Run the steps that are wanted and whose output is not there; stop at the first that fails."""
    folder = FOLDER / model.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, arguments in steps(model, texts).items():
        kept = folder / f"{name}.txt"
        if kept.exists() or (wanted and name not in wanted):
            continue
        print(f"{model.name}, {name}: ropescope {' '.join(arguments)}", flush=True)
        began = time.monotonic()
        ran = subprocess.run(
            [sys.executable, "-m", "ropescope", *arguments], cwd=folder, stdout=subprocess.PIPE, text=True, check=False
        )
        if ran.returncode:
            sys.exit(f"{model.name}, {name}: ended with {ran.returncode}; mend that and call again")
        unfinished = kept.with_suffix(".unfinished")
        unfinished.write_text(ran.stdout, encoding="utf-8")
        unfinished.replace(kept)
        print(f"{model.name}, {name}: {time.monotonic() - began:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--steps", nargs="+", choices=steps(MODELS["smollm2"], Texts()), default=[], help="default: all"
    )
    parser.add_argument("--texts", type=Path, metavar="DATA", help="folder of local copies; default: the hub")
    parser.add_argument("--pages", action="store_true", help="only write the pages")
    options = parser.parse_args()
    texts = Texts() if options.texts is None else Texts.under(options.texts.resolve())
    if not options.pages:
        if options.texts is not None:
            script = ROOT / "tests" / "support" / "harness_tasks.py"
            subprocess.run([sys.executable, script, options.texts.resolve(), FOLDER / "tasks"], check=True)
        for name in options.models:
            run(MODELS[name], texts, options.steps)
    write_pages({model.title: FOLDER / name for name, model in MODELS.items()}, ROOT / "docs")


if __name__ == "__main__":
    main()

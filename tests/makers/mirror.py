"""Made weights under official names: a catalogue of their own, without the published sizes and hashes."""

from __future__ import annotations

import json
from pathlib import Path

from models.weights import CATALOGUE, read_catalogue


def unpublished(root: Path, *names: str) -> None:
    """Adds models `names` of the shipped catalogue to the one in `root`, less bytes and sha256 of their files."""
    import models.weights as shipped

    known = read_catalogue((Path(shipped.__file__).parent / CATALOGUE).read_text(), CATALOGUE)
    root.mkdir(parents=True, exist_ok=True)
    with (root / CATALOGUE).open("a") as file:
        for name in names:
            model = known[name]
            files = ", ".join(f"{{path = {json.dumps(one.path)}, url = {json.dumps(one.url)}}}" for one in model.files)
            facts = {"purpose": model.purpose, "homepage": model.homepage, "licence": model.licence}
            lines = [f"{key} = {json.dumps(value)}" for key, value in facts.items()]
            if model.commercial is not None:
                lines.append(f"commercial = {json.dumps(model.commercial)}")
            file.write("\n".join([f"[{json.dumps(name)}]", *lines, f"files = [{files}]", ""]))

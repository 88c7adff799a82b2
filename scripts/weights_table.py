"""Write the tables of docs/weights.md: what is done with each field of other libraries' configurations.

    python scripts/weights_table.py --out docs/weights.md

The tables are those that the reading of weights itself follows (`scratchvit/weights/configs/`), so run this after a
change there. A test holds the page to them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scratchvit.weights.configs import huggingface, timm  # noqa: E402
from scratchvit.weights.configs.fields import Fields  # noqa: E402

BEGIN, END = "<!-- made by scripts/weights_table.py -->\n", "<!-- to here -->\n"
TIMMS = {
    "ViTConfig": "ViT, DeiT", "HybridConfig": "hybrids", "SwinConfig": "Swin", "SwinV2Config": "Swin V2",
    "MViTv2Config": "MViTv2", "ResNetConfig": "ResNet", "ResNetV2Config": "ResNetV2 (BiT)",
}


def make() -> str:
    """All tables, in Markdown."""
    lines = ["## Hugging Face: config.json\n"]
    for title, fields in (
        ("every model", huggingface.COMMON),
        *((f"{kind.title} (`{name}`)", kind.fields) for name, kind in huggingface.KINDS.items()),
        ("a DETR's backbone from timm (`timm_backbone`)", huggingface.TIMM_BACKBONE),
    ):
        lines += table(title, fields)
    lines.append("## timm: `model_args` of config.json\n")
    for kind, fields in timm.FIELDS.items():
        lines += table(TIMMS[kind.__name__], fields)
    return "\n".join(lines)


def table(title: str, fields: Fields) -> Iterator[str]:
    """The table of one kind of configuration."""
    yield f"### {title}\n"
    yield "| | fields |"
    yield "|---|---|"
    yield f"| honoured | {in_code(fields.honoured)} |"
    if fields.required:
        values = (f"`{name}` {' or '.join(map(shown, allowed))}" for name, allowed in fields.required.items())
        yield f"| refused unless | {', '.join(values)} |"
    if fields.no_effect:
        yield f"| no effect | {in_code(fields.no_effect)} |"
    yield ""


def in_code(names) -> str:
    return ", ".join(f"`{name}`" for name in names)


def shown(value: object) -> str:
    return {"": "\"\"", "{}": "empty", "None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the page to put the tables into")
    args = parser.parse_args()
    if args.out is None:
        print(make())
        return
    before, rest = args.out.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    args.out.write_text(before + BEGIN + make() + END + after, encoding="utf-8")


if __name__ == "__main__":
    main()

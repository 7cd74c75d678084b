"""Write docs/en/index.md and docs/zh/index.md from the index of systems.

python docs/build_index.py           write both pages
python docs/build_index.py --check   exit 1 if a page is not what would be written
"""

import sys
from pathlib import Path

from kexue.systems import System, systems

__all__ = ["index_page", "main"]

DOCS = Path(__file__).resolve().parent

# The folders in the order of the pages, with what each is for.
ROLES = {
    "tasks": ("tasks — a job on data with a score", "tasks：有数据、有分数的完整任务"),
    "losses": ("losses — what is minimised", "losses：最小化什么"),
    "optim": ("optim — how it is minimised", "optim：怎样最小化"),
    "nn": ("nn — what networks are made of", "nn：网络的零件"),
    "models": ("models — whole networks", "models：完整的网络"),
    "probability": ("probability — numbers and distributions", "probability：数与分布"),
    "data": ("data — bytes in, batches out", "data：从字节到批次"),
    "generation": ("generation — tokens out", "generation：生成"),
    "analysis": (
        "analysis — what a network or a score table hides",
        "analysis：网络和分数表里看不见的东西",
    ),
}

INTRO = {
    "en": """# All systems

{done} of {total} systems are available; the others are planned and have no page yet.
Search the same list from the command line: `kexue find TEXT`.
[中文](../zh/index.md) · [Commands](commands.md)
""",
    "zh": """# 全部方法

共 {total} 个方法，目前可用 {done} 个，其余在计划之中，还没有页面。
在命令行里也能查这份清单：`kexue find 关键词`。
[English](../en/index.md) · [命令](commands.md)
""",
}
HEADER = {
    "en": "| id | system | article | module | status |",
    "zh": "| 编号 | 方法 | 文章 | 模块 | 状态 |",
}
STATUS = {
    "en": {"done": "available", "planned": "planned"},
    "zh": {"done": "可用", "planned": "计划中"},
}


def index_page(language: str) -> str:
    """The whole page in "en" or "zh"."""
    rows = systems()
    done = sum(system.done for system in rows)
    parts = [INTRO[language].format(done=done, total=len(rows))]
    for role, names in ROLES.items():
        members = [system for system in rows if system.role == role]
        if members:
            title = names[0 if language == "en" else 1]
            lines = [_row(system, language) for system in members]
            table = [HEADER[language], "|---|---|---|---|---|", *lines]
            parts.append(f"## {title}\n\n" + "\n".join(table) + "\n")
    return "\n".join(parts)


def _row(system: System, language: str) -> str:
    title, page, summary = (
        (system.title_en, system.docs_en, system.summary_en)
        if language == "en"
        else (system.title_zh, system.docs_zh, system.summary_zh)
    )
    linked = f"[{title}]({Path(page).name})" if system.done else title
    articles = " ".join(f"[{n}](https://kexue.fm/archives/{n})" for n in system.article)
    modules = " ".join(f"`kexue.{name}`" for name in system.module)
    status = STATUS[language][system.status]
    return f"| {system.id} | {linked}<br>{summary} | {articles} | {modules} | {status} |"


def main(arguments: list[str]) -> int:
    """Write or check both pages; the exit code."""
    unknown = [a for a in arguments if a != "--check"]
    if unknown:
        print(f"error: unknown argument {unknown[0]!r}; only --check is known", file=sys.stderr)
        return 2
    stale = 0
    for language in ("en", "zh"):
        path = DOCS / language / "index.md"
        page = index_page(language)
        if "--check" not in arguments:
            path.write_text(page, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != page:
            print(f"error: {path} is stale; run: python docs/build_index.py", file=sys.stderr)
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

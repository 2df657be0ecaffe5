"""Imported by the server process of tests/chaos.py after tests/warm_imports.py: the commands of the quickstart."""

from importlib import import_module

NAMES = "answer benchmark encode_images eval_generation eval_tokenizer export_benchmarks generate_images make_base_model quickstart report"
for name in NAMES.split():
    import_module(f"unicode.run.{name}")
for name in ("generate.answers", "generate.drawing_tasks", "metrics.generation", "metrics.reconstruction", "report.words"):
    import_module(f"unicode.{name}")

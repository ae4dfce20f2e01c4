"""Prints the memory table of the GPU runs at the end of the session."""

from typing import Any

from gpu.commands import TABLE, runs_folder, table_text, write_table


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TABLE:
        terminalreporter.section("memory of the first device, beside the plan's estimate")
        terminalreporter.write(table_text())
        terminalreporter.write_line(f"runs are kept in {runs_folder()}")
        write_table()

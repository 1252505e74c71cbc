"""LaTeX tables: every cell of the Markdown table, in as many columns, with nothing that LaTeX would take for a command."""

import re
from dataclasses import replace

from common.paper import Table
from common.report.latex import table_latex, tex
from common.report.results import Results
from common.report.tables import table_cells
from tests.records import PUBLISHED, toy_paper, toy_records

HOSTILE = r"50% & $x_1^2$ #3 {a} \input{/etc/passwd} ~ <b> | ± →"


def test_special_letters_are_escaped():
    found = tex(HOSTILE)
    assert found == (r"50\% \& \$x\_1\textasciicircum{}2\$ \#3 \{a\} \textbackslash{}input\{/etc/passwd\} \textasciitilde{} "
                     r"\textless{}b\textgreater{} \textbar{} $\pm$ $\to$")


def test_a_table_has_a_line_for_each_row_and_a_field_for_each_column(tmp_path):
    paper = toy_paper(tmp_path / "toy")
    records = toy_records(paper, {"ce": (30.0, 31.0, 29.0), "own@written": (20.0, 21.0, 22.0)})
    table = Table("1", "Errors & more")
    text = table_latex(*table_cells(Results(replace(paper, tables=(table,)), records, "paper"))[0])
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 1
    assert r"Errors \& more" in text
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0].strip()
    lines = [line for line in body.split("\\\\") if line.strip()]
    head = text.split(r"\toprule")[1].split(r"\midrule")[0]
    fields = len(re.findall(r"(?<!\\)&", head))
    assert [len(re.findall(r"(?<!\\)&", line)) for line in lines] == [fields] * len(lines)
    assert len(lines) == 5  # ce, ghost and rival, and both readings of the paper's own method
    own = next(line for line in lines if "written" in line and "22.00" in line)
    assert r"22.00 $\to$ 21.00 $\pm$ 1.00 (3), -1.00, undecided" in own


def test_names_from_the_file_cannot_be_commands(tmp_path):
    rows = (*PUBLISHED, r"1,cifar10,lt,100,evil,[9],20.00,row=\input{x} % & _")
    paper = toy_paper(tmp_path / "toy", published=rows)
    table = Table("1", "Errors")
    text = table_latex(*table_cells(Results(replace(paper, tables=(table,)), {}, "paper"))[0])
    assert r"\textbackslash{}input\{x\} \% \& \_" in text
    assert r"\input{x}" not in text

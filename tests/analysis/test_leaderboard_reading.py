"""Tables from CSV, JSON and run folders, and the message for each that is none."""

import json
import math

import numpy as np
import pytest

from kexue.analysis.leaderboard import Leaderboard, built_in, read_table
from kexue.analysis.leaderboard.reading import read_csv, read_json
from kexue.analysis.leaderboard.table import cell_numbers


def csv(text):
    return read_csv(text, "t.csv")


def run(folder, scores, metric="accuracy"):
    """A run folder; `scores` holds (task, seed, score)."""
    folder.mkdir(parents=True)
    rows = [
        {"task": task, "seed": seed, "metric": metric, "scores": {metric: score}}
        for task, seed, score in scores
    ]
    (folder / "results.json").write_text(json.dumps(rows))
    return folder


def test_a_table_is_a_heading_and_a_line_per_model():
    found = csv("model,A,B\nx,90.5,80\ny,70,60\n")
    assert (found.models, found.columns) == (("x", "y"), ("A", "B"))
    assert found.cells.tolist() == [[90.5, 80], [70, 60]]


@pytest.mark.parametrize(
    "text",
    [
        "model;A;B\nx;90,5;80\ny;70,25;60",  # decimal commas
        "model\tA\tB\nx\t90.5\t80\ny\t70.25\t60\n",
        '"model","A","B"\n"x","90,5","80"\n"y","70,25","60"\n',
        "# where from\n# and when\nmodel,A,B\n\nx,90.5 %,80%\ny , 70.25,60\n",
        "model,A,B,\r\nx,90.5,80,\r\ny,70.25,60,\r\n",  # a spreadsheet's empty last column
        "model,A,B\nx,9.05e1,+80\ny,70.25,60.\n",
        '"model";"A";"B"\r\n"x";"90,5";80\r\n"y";"70,25";60\r\n',
    ],
)
def test_the_ways_of_writing_a_table_are_the_same_table(text):
    found = csv(text)
    assert found.models == ("x", "y")
    assert found.columns == ("A", "B")
    assert found.cells.tolist() == [[90.5, 80], [70.25, 60]]


def test_the_mark_between_cells_is_the_one_that_gives_all_rows_equal_length():
    found = csv("model;Acc, dev;F1, dev, mean of 3\nx;90,5;80\ny;70;60\n")
    assert found.columns == ("Acc, dev", "F1, dev, mean of 3")
    assert found.cells.tolist() == [[90.5, 80], [70, 60]]
    assert csv('model,"A; b; c; d",B\nx,90,80').columns == ("A; b; c; d", "B")


def test_a_line_break_within_quotes_is_a_space():
    assert csv('model,"A\nhard"\n"x\n large",90').models == ("x large",)
    with pytest.raises(ValueError, match=r"t\.csv:4: row 'y', column 'A': 'bad' is no score"):
        csv('model,A\n"x\nlarge",90\ny,bad\n')


def test_the_minus_sign_of_mathematics_is_one():
    assert csv("m,A,B\nx,\u22123.5,\u2212").cells[0, 0] == -3.5
    assert math.isnan(csv("m,A,B\nx,1,\u2212").cells[0, 1])


def test_two_metrics_of_a_task_stand_in_one_cell_and_are_averaged():
    found = csv("m,CB,RTE\nx,95.8/98.9,90\ny,-,80\nz,90/n/a,70".replace("90/n/a", "90/-"))
    assert found.columns == ("CB (1)", "CB (2)", "RTE")
    scores = found.scores()
    assert scores[0, 0] == pytest.approx(97.35)
    assert np.isnan(scores[1:, 0]).all()  # never over what happens to be there


@pytest.mark.parametrize("cell", ["", "-", "—", "n/a", "NaN", "null", "?", " NA "])
def test_a_missing_score_is_nan_however_it_is_written(cell):
    assert math.isnan(csv(f"m,A,B\nx,{cell},1\ny,2,3").cells[0, 0])


def test_the_tables_own_average_is_no_task():
    for name in ("average", "Avg", "published", "平均分"):
        found = csv(f"m,A,{name}\nx,90,91.5\ny,80,\n")
        assert list(found.tasks) == ["A"]
        assert found.published == {"x": 91.5}
        assert name in found.notes[0][0]
        assert name in found.notes[0][1]
    assert read_csv("m,A,GLUE\nx,90,91.5", published="GLUE").published == {"x": 91.5}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "t.csv is empty"),
        ("# only a comment\n", "t.csv is empty"),
        ("model,A,B\n", "0 models and 2 tasks"),
        ("model\nx\n", "1 models and 0 tasks"),
        ("m,A,B\nx,90,good\n", "t.csv:2: row 'x', column 'B': 'good' is no score"),
        ("# c\nm,A,B\nx,90,1\ny,1_0,2\n", "t.csv:4: row 'y', column 'A': '1_0' is no score"),
        ("m,A\nx,inf\n", "row 'x', column 'A': 'inf' is no score"),
        ("m,A,B\nx,90\n", "t.csv:2: row 'x' has 2 cells, the heading has 3"),
        ("m,A\nx,90,91\n", "row 'x' has 3 cells, the heading has 2"),
        ("m,A\n,90\n", "t.csv:2: the row has no name"),
        ("m,A\nx,90\nx,91\n", "t.csv:3: model 'x' is there twice"),
        ("m,A,A\nx,90,91\n", "column 'A' is there twice, as number 1 and 2"),
        ("m,,B\nx,90,91\n", "column 2 of the heading has no name"),
        ("m;A;B\nx;90,5;80.5\n", r"mixed: t.csv:2: row 'x', column 'A' \(90,5\), but .*80.5"),
        ("m,A\nx,90/91\ny,90\n", "column 'A' has 2 .* in row 'x' and 1 in row 'y'"),
        ("m,A,avg,mean\nx,1,2,3\n", "'avg' and 'mean' both look like averages"),
        ("m,avg\nx,1\n", "no task beside the average 'avg'"),
        ("m,A,avg\nx,1,2/3\n", "the average in column 'avg' must be one number per row"),
        ("m,A\n" + "x" * 200_000 + ",1\n", "t.csv:2: no CSV: field larger than field limit"),
        ("m|A\nx|1\n", "0 tasks; .* with a comma, a semicolon or a tab between cells"),
    ],
)
def test_what_is_no_table_is_named_with_row_and_column(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        csv(text)
    assert "\n" not in str(caught.value)


def test_json_comes_by_model_or_as_a_list():
    rows = {"x": {"A": 90.5, "CB": "95/97", "avg": 93}, "y": {"A": None, "CB": {"f1": 1, "a": 3}}}
    listed = [{"model": name} | row for name, row in rows.items()]
    for one in (rows, listed):
        found = read_json(json.dumps(one))
        assert found.models == ("x", "y")
        assert found.published == {"x": 93}
        np.testing.assert_array_equal(found.scores(), [[90.5, 96], [math.nan, 2]])


def test_a_list_in_a_json_cell_holds_seeds():
    found = read_json('{"x": {"A": [80, 90], "B": 5}}')
    assert found.cells.tolist() == [[85, 5]]
    assert found.seeds == {("x", "A"): (80, 90)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "t.json:1 is not JSON"),
        ("[1]", "is needed, or a list of objects"),
        ("{}", "0 models and 0 tasks"),
        ('{"x": 3}', "is needed, or a list"),
        ('{"x": {"A": 1}, "x": {"A": 2}}', "'x' is there twice"),
        ('{"x": {"A": 1, "A": 2}}', "'A' is there twice"),
        ('[{"model": "x", "A": 1}, {"model": "x", "A": 2}]', "model 'x' is there twice"),
        ('{"x": {"A": true}}', "row 'x', column 'A': True is no score"),
        ('{"x": {"A": "high"}}', "row 'x', column 'A': 'high' is no score"),
        ('{"x": {"A": [1, "2"]}}', "row 'x', column 'A': '2' is no score"),
        ('{"x": {"A": ' + "9" * 400 + "}}", "column 'A': a whole number of 400 digits is no score"),
        ("[" * 100_000 + "]" * 100_000, "t.json: lists within lists without end"),
        ('[{"model": null, "A": 1}]', 'a list of objects that each have "model"'),
        ('{"x": {"A": 1, "avg": {"a": 1, "b": 2}}}', "'avg' must be one number per row"),
    ],
)
def test_json_that_is_no_table_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        read_json(text, "t.json")


def test_run_folders_are_rows_with_the_scores_of_every_seed(tmp_path):
    one = run(tmp_path / "bert", [("tnews", 0, 50.0), ("tnews", 1, 54.0), ("wsc", 0, 70.0)])
    two = run(tmp_path / "gau", [("tnews", 0, 51.0), ("wsc", 0, None)])
    found = read_table([one, two / "results.json"])
    assert found.models == ("bert", "gau")
    np.testing.assert_array_equal(found.cells, [[52, 70], [51, math.nan]])
    assert found.seeds["bert", "tnews"] == (50, 54)
    assert read_table([tmp_path]).models == ("bert", "gau")


def test_runs_of_one_name_are_told_apart_by_their_path_and_the_same_run_counts_once(tmp_path):
    one = run(tmp_path / "a" / "run", [("t", 0, 1.0)])
    two = run(tmp_path / "b" / "run", [("t", 0, 2.0)])
    assert read_table([one, two]).models == (str(one), str(two))
    assert read_table([one, one]).models == ("run",)


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    one = run(tmp_path / "a", [("t", 0, 1.0)])
    two = run(tmp_path / "b", [("t", 0, 2.0)], metric="f1")
    with pytest.raises(ValueError, match="'t' is scored by accuracy in 'a' and by f1 in 'b'"):
        read_table([one, two])
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"no results\.json here"):
        read_table([tmp_path / "c"])
    (tmp_path / "c" / "results.json").write_text('{"layer": 3}')
    with pytest.raises(ValueError, match="a list of results with task, metric and scores"):
        read_table([tmp_path / "c"])
    for deep in ("[" * 100_000 + "]" * 100_000, '[{"metric": "f1", "scores": {"f1": 1}}]'):
        (tmp_path / "c" / "results.json").write_text(deep)
        with pytest.raises(ValueError, match="a list of results with task, metric and scores"):
            read_table([tmp_path / "c"])
    (tmp_path / "c" / "results.json").write_text("[")
    with pytest.raises(ValueError, match="is not JSON"):
        read_table([tmp_path / "c"])


def test_paths_that_are_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="give a table"):
        read_table([])
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_table([tmp_path / "none.csv"])
    (tmp_path / "t.csv").write_bytes("模型,A\nx,1".encode("gbk"))
    with pytest.raises(ValueError, match=r"not UTF-8 text; .* iconv -f gb18030 -t utf-8 .*t\.csv"):
        read_table([tmp_path / "t.csv"])
    with pytest.raises(ValueError, match="one table or several run folders, got 2"):
        read_table([built_in("glue"), built_in("superglue")])
    with pytest.raises(ValueError, match="no column 'x'; there are published, BoolQ"):
        read_table([built_in("superglue")], published="x")
    with pytest.raises(ValueError, match="run folders hold no published average"):
        read_table([run(tmp_path / "r", [("t", 0, 1.0)])], published="x")


def test_a_byte_order_mark_of_a_spreadsheet_is_no_part_of_the_heading(tmp_path):
    (tmp_path / "t.csv").write_text("model,平均\nx,1", encoding="utf-8-sig")
    with pytest.raises(ValueError, match="no task beside the average '平均'"):
        read_table([tmp_path / "t.csv"])


def test_merging_and_leaving_out_tasks():
    glue = Leaderboard.read(built_in("glue")).table
    merged = glue.merged({"MNLI": ["MNLI-m", "MNLI-mm"]}).without(["AX"])
    assert len(merged.tasks) == 9
    mean = Leaderboard.of(merged).aggregate()
    np.testing.assert_allclose(mean, [87.1, 91.1, 90.8], atol=0.06)
    with pytest.raises(ValueError, match="'MNLI' is no task"):
        glue.without(["MNLI"])
    with pytest.raises(ValueError, match="merged task 'RTE' is there twice"):
        glue.merged({"a": ["RTE"], "b": ["RTE"]})
    with pytest.raises(ValueError, match="no task is left"):
        glue.without(list(glue.tasks))


def test_seeds_stay_with_the_tasks_that_are_not_merged():
    found = read_json('{"x": {"A": [80, 90], "B": [5, 6], "C": [1, 2]}}')
    assert found.merged({}).seeds == found.seeds
    assert found.merged({"AB": ["A", "B"]}).seeds == {("x", "C"): (1, 2)}
    assert found.without(["C"]).seeds == found.seeds


def test_every_built_in_table_says_where_its_rows_are_from():
    for name in ("superglue", "superglue-diagnostics", "glue"):
        text = built_in(name).read_text(encoding="utf-8")
        assert text.startswith("# ")
        assert "arXiv" in text.split("model,")[0]
    with pytest.raises(ValueError, match="no built-in table 'clue'"):
        built_in("clue")


def test_half_a_slash_is_no_score():
    with pytest.raises(ValueError, match="'95/x' is no score"):
        cell_numbers("95/x")

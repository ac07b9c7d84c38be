"""We-Math: its published file and VLMEvalKit's table; grades by hand; the four-dimensional metric worked out by hand."""

from __future__ import annotations

import math
import pickle

import pytest

from octopus_mcore.data.tables import RowError
from octopus_mcore.evals.registry import benchmark
from octopus_mcore.evals.wemath import PARTS, grade, metrics, read, split_options
from tests.benchmark_files import by_id, png, png_base64, write_json, write_tsv


def row(group: str, part: str, **changed) -> dict:
    """A row of `testmini.json`."""
    kind = group.partition("_")[0]
    concepts = "Area of Circles;Rotation" if part == "multi" else "Area of Circles"
    found = {"ID": group, "split": "testmini", "knowledge concept": concepts, "question": "What is the area of the bed (  )?"}
    found |= {"option": "A. 200.96;B. 3215.36;C. 6280;D. 32; E. No correct answer", "answer": "B"}
    found |= {"image_path": f"{kind}/image/{part}.png", "key": f"{kind}_{part}", "question number": 1}
    return found | {"knowledge concept description": "Area of …"} | changed


def group(name: str, **changed) -> list[dict]:
    return [row(name, part, **changed) for part in PARTS[name.partition("_")[0]]]


NODES = [
    {"root0": "Geometry and Figures", "root2": "Calculation of Plane Figures", "full node": "Plane_Areas_Area of Circles"},
    {"root0": "Geometry and Figures", "root2": "Calculation of Plane Figures", "full node": "Plane_Areas_Area of Squares"},
    {"root0": "Geometry and Figures", "root2": "Basic Transformations of Figures", "full node": "Motion_Rotation"},
]


def write(folder, rows, nodes=NODES):
    for kind, parts in PARTS.items():
        (folder / kind / "image").mkdir(parents=True)
        for part in parts:
            (folder / kind / "image" / f"{part}.png").write_bytes(png())
    write_json(folder / "testmini.json", rows)
    if nodes:
        write_json(folder / "knowledge_structure_nodes.json", nodes)
    return folder


def test_rows_become_questions(tmp_path):
    items = by_id(read(write(tmp_path, group("3steps_165")), "testmini"))
    assert list(items) == [f"3steps_165:{part}" for part in ("1", "2", "3", "multi")]
    item = items["3steps_165:multi"]
    assert item.row.question == (
        "Question: What is the area of the bed (  )?\nOptions:\nA. 200.96\nB. 3215.36\nC. 6280\nD. 32\nE. No correct answer"
    )
    assert item.truth == "B" and dict(item.tags) == {"steps": "three-step"}
    assert dict(items["3steps_165:1"].tags) == {"steps": "one-step", "field": "Calculation of Plane Figures"}


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("A. 300, 400;B. 400, 300; C. No correct answer", ("300, 400", "400, 300", "No correct answer")),
        ("A. ①; ③;B. ②; ③", ("①; ③", "②; ③")),
        ("A. 45° B. 60° ;C. 120°; D. No correct answer", ("45°", "60°", "120°", "No correct answer")),
        (
            "A. Go to B, then to ;C.  ;B. Go west to ;C.  ;C. Go east to ;C. ;D. None",
            ("Go to B, then to C.", "Go west to C.", "Go east to C.", "None"),
        ),
        ("A. Equal; B. Twice BE;G.; C. None", ("Equal", "Twice BEG.", "None")),
        ("nothing", ()),
    ],
)
def test_options_of_the_published_file(text, options):
    assert split_options(text) == options


GRADES = [
    ("<think>…</think>\\boxed{B}", 1),
    ("<think>…\\boxed{B}", 0),
    ("<Thought process>: <<r = 32>> <Answer>: <<B>>", 1),
    ("<Thought process>: <<r = 32>> <Answer>: <<A>>", 0),
    ("<Answer>: B", 1),
    ("The answer is B.", 1),
    ("B. 3215.36", 1),
    ("3215.36", 1),
    ("\\boxed{200.96}", 0),
    ("Answer: (b)", 1),
    ("E", 0),
    ("F", 0),
    ("B or C", 0),
    ("", 0),
    ("\\boxed{}", 0),
    ("<think>B</think> I cannot tell.", 0),
    ("<" * 50_000 + "1", 0),  # took minutes
]


@pytest.mark.parametrize(("text", "score"), GRADES)
def test_grades(tmp_path, text, score):
    item = read(write(tmp_path, group("2steps_1")), "testmini")[0]
    assert grade(text, pickle.loads(pickle.dumps(item))).score == score


def test_letters_are_read_where_they_stand(tmp_path):
    item = read(write(tmp_path, group("2steps_1", answer="A")), "testmini")[0]
    assert grade("Answer: A circle has an area.", item).score == 0
    assert all(grade(text, item).score == 1 for text in ("\\boxed{A}", "(a)", "Answer: (A)"))


def test_options_with_the_same_text_are_all_right(tmp_path):
    rows = group("2steps_1", option="A. up; B. down; C. down; D. None")
    item = read(write(tmp_path, rows), "testmini")[0]
    assert [grade(answer, item).score for answer in "ABC"] == [0, 1, 1]


def test_vlmevalkits_table(tmp_path):
    rows = []
    for index, found in enumerate(group("2steps_7")):
        options = {"A": "200.96", "B": "3215.36", "C": "None", "D": ""}
        kept = {key: found[key] for key in ("ID", "key", "question", "answer", "knowledge concept")}
        rows.append({"index": index, "image": png_base64()} | kept | options)
    items = read(write_tsv(tmp_path / "WeMath.tsv", rows), "testmini")
    assert items[0].row.uid == "wemath:2steps_7:1" and items[0].choices == ("200.96", "3215.36", "None")
    assert items[0].row.question.endswith("\nC. None")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"key": "4steps_1"}, "key 'key': expected one of '2steps_1'"),
        ({"answer": "F"}, "key 'answer': expected one of the options A to E, found 'F'"),
        ({"option": ""}, "key 'option': expected a text"),
        ({"image_path": "none.png"}, "key 'image_path': 'none.png' is not an image file below"),
        ({"knowledge concept": "Area of Moons"}, "'Area of Moons' is not in knowledge_structure_nodes.json"),
    ],
)
def test_wrong_rows_are_told(tmp_path, changed, told):
    rows = group("2steps_1")
    rows[0] |= changed
    with pytest.raises(RowError) as error:
        read(write(tmp_path, rows), "testmini")
    assert "testmini.json, row 1" in str(error.value) and told in str(error.value)


def test_missing_columns_double_ids_and_broken_pictures_are_told(tmp_path):
    rows = [*group("2steps_1"), row("2steps_1", "1"), row("2steps_2", "1", image_path="broken.png")]
    del rows[0]["knowledge concept"]
    folder = write(tmp_path, rows)
    (folder / "broken.png").write_bytes(b"no picture")
    with pytest.raises(RowError, match="(?s)2 of 5 rows.*key 'knowledge concept': the key is missing.*cannot be decoded"):
        read(folder, "testmini")
    write_json(folder / "testmini.json", [*group("2steps_1"), row("2steps_1", "1")])
    with pytest.raises(RowError, match="'wemath:2steps_1:1' is also row 1"):
        read(folder, "testmini")


def test_a_file_with_incomplete_groups_is_refused(tmp_path):
    rows = [*group("2steps_1"), *group("3steps_4")[1:]]
    with pytest.raises(RowError, match="1 problems lack a step or the whole.*'3steps_4', which has 2, 3, multi"):
        read(write(tmp_path, rows), "testmini")


HAND = {
    "2steps_1": (1, 1, 1),  # CM
    "2steps_2": (1, 0, 1),  # CM loosely, RM strictly
    "2steps_3": (0, 0, 1),  # RM
    "2steps_4": (1, 1, 0),  # IG
    "3steps_1": (1, 0, 1, 0),  # IK
    "3steps_2": (0, 0, 0, 0),  # IK
    "3steps_3": (0, 0, 1, 1),  # CM loosely, RM strictly
    "3steps_4": (1, 1, 1, 1),  # CM
}


def test_the_four_dimensions_by_hand(tmp_path):
    """IK 2/8, IG 1/8; strictly CM 2/8 and RM 3 of 5 right ones, loosely CM 4/8 and RM 1 of 5.

    Published form: (8 − 0.5·1 − 1 − 2)/8 = 0.5625 loosely, (8 − 0.5·1 − 3 − 2)/8 = 0.3125 strictly.
    """
    items = read(write(tmp_path, [found for name in HAND for found in group(name)]), "testmini")
    scores = [float(score) for values in HAND.values() for score in values]
    found = metrics(items, scores)
    assert list(found)[:2] == ["score_loose", "score_strict"]
    assert (found["score_loose"], found["score_strict"]) == (0.5625, 0.3125)
    assert (found["insufficient_knowledge"], found["inadequate_generalization"]) == (0.25, 0.125)
    assert (found["complete_mastery_strict"], found["complete_mastery_loose"]) == (0.25, 0.5)
    assert found["rote_memorization_strict"] == pytest.approx(3 / 5)
    assert found["rote_memorization_loose"] == pytest.approx(1 / 5)
    assert found["accuracy"] == sum(scores) / 28 and "incomplete_groups" not in found
    assert found["steps/one-step"] == 11 / 20 and found["steps/two-step"] == 3 / 4 and found["steps/three-step"] == 2 / 4


def test_fields_are_means_over_their_concepts(tmp_path):
    rows = [*group("2steps_1"), *group("2steps_2"), *group("2steps_3")]
    rows[0]["knowledge concept"] = "Area of Squares"
    rows[1]["knowledge concept"] = "Rotation"
    items = read(write(tmp_path, rows), "testmini")
    found = metrics(items, [1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    assert found["field/Calculation of Plane Figures"] == (1 + 1 / 4) / 2  # squares 1 of 1, circles 1 of 4
    assert found["field/Basic Transformations of Figures"] == 1


def test_without_the_structure_there_are_no_fields(tmp_path):
    items = read(write(tmp_path, group("2steps_1"), nodes=None), "testmini")
    assert not any(key.startswith("field/") for key in metrics(items, [1.0, 1.0, 1.0]))


def test_means_over_samples_are_means_over_draws(tmp_path):
    """Steps right with 1/2 and 1, problem with 1/2: CM 1/4, IG 1/4, IK 1/4; loosely CM 1/2."""
    found = metrics(read(write(tmp_path, group("2steps_1")), "testmini"), [0.5, 1.0, 0.5])
    assert found["score_strict"] == 0.25 + 0.125 and found["score_loose"] == 0.5 + 0.125
    assert found["insufficient_knowledge"] == 0.25 and found["inadequate_generalization"] == 0.25


def test_partial_groups_are_counted_and_left_out(tmp_path):
    items = read(write(tmp_path, [*group("2steps_1"), *group("2steps_2"), *group("3steps_1")]), "testmini")
    found = metrics(items[:4], [1.0, 1.0, 1.0, 0.0])
    assert found["score_loose"] == 1 and found["incomplete_groups"] == 1 and found["accuracy"] == 0.75
    nothing = metrics(items[:2], [1.0, 1.0])
    assert math.isnan(nothing["score_loose"]) and math.isnan(nothing["rote_memorization_strict"])
    assert nothing["incomplete_groups"] == 1


def test_rote_memorization_of_no_right_problem_is_undefined(tmp_path):
    found = metrics(read(write(tmp_path, group("2steps_1")), "testmini"), [1.0, 1.0, 0.0])
    assert math.isnan(found["rote_memorization_loose"]) and found["score_loose"] == 0.5


def test_it_is_registered():
    assert benchmark("wemath").grade is grade

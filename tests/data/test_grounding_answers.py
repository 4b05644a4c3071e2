"""What models answer -> boxes: a table of answer forms, each worked out by hand."""

import time

import pytest

from moon_jax.config import DataConfig, VisionConfig
from moon_jax.data.grounding import Frame
from moon_jax.data.grounding_answers import PARSED, WHOLE, find_box, read_boxes

# A picture of 400 x 200 px that the model sees as 196 x 98: what it calls (x, y) is (x, y) * 400 / 196 there.
FRAME = Frame((400, 200), (400, 200), (196, 98))
K = 400 / 196
TITLE = "Red mug, 12 oz"

# answer -> the numbers of the box that is taken, in the model's pixels
BOXES = {
    "fenced": ('```json\n[\n\t{"bbox_2d": [10, 20, 60, 90], "label": "mug"}\n]\n```', (10, 20, 60, 90)),
    "JSON list": ('[{"bbox_2d": [10, 20, 60, 90], "label": "mug"}]', (10, 20, 60, 90)),
    "one object": ('{"bbox_2d": [10, 20, 60, 90]}', (10, 20, 60, 90)),
    "label first": ('[{"label": "mug", "bbox_2d": [10, 20, 60, 90]}]', (10, 20, 60, 90)),
    "another key": ('{"box": [10, 20, 60, 90]}', (10, 20, 60, 90)),
    "single quotes": ("[{'bbox_2d': [10, 20, 60, 90], 'label': 'mug'}]", (10, 20, 60, 90)),
    "nested": ('{"objects": [{"bbox_2d": [10, 20, 60, 90]}]}', (10, 20, 60, 90)),
    "bare list": ("[10, 20, 60, 90]", (10, 20, 60, 90)),
    "list of lists": ("[[10, 20, 60, 90]]", (10, 20, 60, 90)),
    "no spaces": ("[10,20,60,90]", (10, 20, 60, 90)),
    "over lines": ("[\n  10,\n  20,\n  60,\n  90\n]", (10, 20, 60, 90)),
    "words around": ("The mug is at [10, 20, 60, 90] in the picture.", (10, 20, 60, 90)),
    "round brackets": ("(10, 20, 60, 90)", (10, 20, 60, 90)),
    "box tags": ("<box>(10,20),(60,90)</box>", (10, 20, 60, 90)),
    "Qwen2-VL": ("<|object_ref_start|>mug<|object_ref_end|><|box_start|>(10,20),(60,90)<|box_end|>", (10, 20, 60, 90)),
    "Qwen2-VL less its special tokens": ("mug(10,20),(60,90)", (10, 20, 60, 90)),
    "two points": ("[[10, 20], [60, 90]]", (10, 20, 60, 90)),
    "named corners": ('{"x1": 10, "y1": 20, "x2": 60, "y2": 90}', (10, 20, 60, 90)),
    "attributes": ('<box x1="10" y1="20" x2="60" y2="90">', (10, 20, 60, 90)),
    "floats": ("[10.5, 20.25, 60.0, 90.]", (10.5, 20.25, 60, 90)),
    "signs": ("[+10, -5, 60, 90]", (10, 0, 60, 90)),
    "corners the other way": ("[60, 90, 10, 20]", (10, 20, 60, 90)),
    "corners crossed": ("[60, 20, 10, 90]", (10, 20, 60, 90)),
    "partly outside": ("[-30, 20, 500, 300]", (0, 20, 196, 98)),
    "cut off behind a box": ('```json\n[\n\t{"bbox_2d": [10, 20, 60, 90], "lab', (10, 20, 60, 90)),
    "cut off in the label": ('[{"bbox_2d": [10, 20, 60, 90], "label": "re', (10, 20, 60, 90)),
    "cut off in the second": ('[{"bbox_2d": [10, 20, 60, 90]}, {"bbox_2d": [0, 0, 190', (10, 20, 60, 90)),
    "several: the largest": ('[{"bbox_2d": [0, 0, 9, 9]}, {"bbox_2d": [10, 20, 60, 90]}]', (10, 20, 60, 90)),
    "several: the label": (
        '[{"bbox_2d": [0, 0, 196, 98], "label": "table"}, {"bbox_2d": [10, 20, 60, 90], "label": "red mug"}]',
        (10, 20, 60, 90),
    ),
    "several: labels alike, the largest": (
        '[{"bbox_2d": [0, 0, 9, 9], "label": "mug"}, {"bbox_2d": [10, 20, 60, 90], "label": "mug"}]',
        (10, 20, 60, 90),
    ),
    "several: the first of equals": ("[10, 20, 60, 90] [70, 20, 120, 90]", (10, 20, 60, 90)),
    "several: the usable one": ("[300, 20, 400, 90], [7, 7, 7, 90], [10, 20, 60, 90]", (10, 20, 60, 90)),
    "numbers in the label": ('[{"label": "set [0, 0, 196, 98]", "bbox_2d": [10, 20, 60, 90]}]', (10, 20, 60, 90)),
    "a quote in the label": ('[{"label": "12\\" [0, 0, 196, 98]", "bbox_2d": [10, 20, 60, 90]}]', (10, 20, 60, 90)),
    "a comma too many": ('[{"bbox_2d": [10, 20, 60, 90], }, ]', (10, 20, 60, 90)),
    "bare": ("10, 20, 60, 90", (10, 20, 60, 90)),
    "bare on a line of words": ("Here it is.\nbox: 10 20 60 90.\n", (10, 20, 60, 90)),
    "between tags": ("<box>10,20,60,90</box>", (10, 20, 60, 90)),
    "between tags, spaces": ("<box>10 20 60 90</box>", (10, 20, 60, 90)),
    "tokens": ("<|box_start|>10, 20, 60, 90<|box_end|>", (10, 20, 60, 90)),
    "each in angles": ("<10><20><60><90>", (10, 20, 60, 90)),
    "braces": ("{10, 20, 60, 90}", (10, 20, 60, 90)),
    "a text": ('{"bbox_2d": "10, 20, 60, 90"}', (10, 20, 60, 90)),
    "numbers as texts": ('{"bbox_2d": ["10", "20", "60", "90"]}', (10, 20, 60, 90)),
    "spaces": ("[10 20 60 90]", (10, 20, 60, 90)),
    "semicolons": ("[10;20;60;90]", (10, 20, 60, 90)),
    "full-width signs": ("［１０，２０，６０，９０］", (10, 20, 60, 90)),
    "full-width, pairs": ("（10，20）、（60，90）", (10, 20, 60, 90)),
    "pixels": ("[10px, 20px, 60 px, 90px]", (10, 20, 60, 90)),
    "exponents": ("[1e1, 2.0e1, 6E+1, 900e-1]", (10, 20, 60, 90)),
    "beyond by an exponent": ("[1e3, 20, 60, 90]", (60, 20, 196, 90)),
    "a score behind": ("[10, 20, 60, 90, 0.97]", (10, 20, 60, 90)),
    "polygon": ("[[10,20],[60,20],[60,90],[10,90]]", (10, 20, 60, 90)),
    "triangle": ("[[10, 90], [35, 20], [60, 90]]", (10, 20, 60, 90)),
    "corners in another order": ('{"x2": 60, "y2": 90, "x1": 10, "y1": 20}', (10, 20, 60, 90)),
    "xmin": ('{"xmin": 10, "ymin": 20, "xmax": 60, "ymax": 90}', (10, 20, 60, 90)),
    "x_min": ("x_min: 10, x_max: 60, y_min: 20, y_max: 90", (10, 20, 60, 90)),
    "from zero": ("x0=10 y0=20 x1=60 y1=90", (10, 20, 60, 90)),
    "sides": ('{"left": 10, "top": 20, "right": 60, "bottom": 90}', (10, 20, 60, 90)),
    "width and height": ('{"x": 10, "y": 20, "width": 50, "height": 70}', (10, 20, 60, 90)),
    "named texts": ('{"x1": "10", "y1": "20", "x2": "60px", "y2": "90"}', (10, 20, 60, 90)),
    "two objects": (
        '[{"x1":0,"y1":0,"x2":196,"y2":98,"label":"table"},{"x1":10,"y1":20,"x2":60,"y2":90,"label":"red mug"}]',
        (10, 20, 60, 90),
    ),
    "named points": ('{"top_left": [10, 20], "bottom_right": [60, 90]}', (10, 20, 60, 90)),
    "from to": ("from (10,20) to (60,90)", (10, 20, 60, 90)),
    "a dash": ("(10, 20) - (60, 90)", (10, 20, 60, 90)),
    "points in words": ("top left (10, 20), bottom right (60, 90)", (10, 20, 60, 90)),
    "Chinese points": ("左上角(10,20)，右下角(60,90)", (10, 20, 60, 90)),
    "numbers in a label of single quotes": (
        "{'bbox_2d': [10, 20, 60, 90], 'label': 'size [0,0,190,95]'}",
        (10, 20, 60, 90),
    ),
    "an apostrophe in it": ("{'label': 'it's [0,0,190,95]', 'bbox_2d': [10, 20, 60, 90]}", (10, 20, 60, 90)),
    "numbers in a name": ('{"name": "[0,0,190,95]", "bbox_2d": [10, 20, 60, 90]}', (10, 20, 60, 90)),
    "pairs that are none": ("The image is (196, 98), (0, 0) origin; box: [10, 20, 60, 90]", (10, 20, 60, 90)),
    "Chinese": ("红色杯子的位置是[10, 20, 60, 90]。", (10, 20, 60, 90)),
}
NONE = {
    "": "no answer",
    " \n": "no answer",
    "I cannot see a mug.": "no box in the answer",
    "[]": "no box in the answer",
    "```json\n[]\n```": "no box in the answer",
    '{"bbox_2d": null}': "no box in the answer",
    '{"point_2d": [10, 20]}': "no box in the answer",
    "[10, 20, 60]": "no box in the answer",
    "[10, 20, 60, 90, 5]": "no box in the answer",
    "[10, 20, 60, 9": "no box in the answer",
    "[NaN, 20, 60, 90]": "no box in the answer",
    "[Infinity, 20, 60, 90]": "no box in the answer",
    '{"x1": 10, "y1": 20, "x2": 60, "y2": 9': "no box in the answer",
    "x1=10, y1=20, x2=60": "no box in the answer",
    "12 cups, 3 plates": "no box in the answer",
    "[ten, 20, 60, 90]": "no box in the answer",
    "[99999999999999999999, 20, 60, 90]": "no box in the answer",
    '{"label": "[10, 20, 60, 90]"}': "no box in the answer",
    "[0, 0, 0, 0]": "box without area",
    "[10, 20, 10, 90]": "box without area",
    "[0.1, 0.2, 0.6, 0.9]": "box without area",  # shares of the sides: no form that Qwen was taught
    "[300, 20, 400, 90]": "box outside the picture",
    "[-60, -90, -10, -20]": "box outside the picture",
}


@pytest.mark.parametrize("name", BOXES)
def test_a_box_is_found(name):
    answer, numbers = BOXES[name]
    found = find_box(answer, TITLE, FRAME, "absolute")
    assert (found.status, found.answer) == (PARSED, answer)
    assert found.box == pytest.approx([number * K for number in numbers])


@pytest.mark.parametrize("answer", NONE)
def test_the_whole_picture_stands_for_no_box(answer):
    found = find_box(answer, TITLE, FRAME, "absolute")
    assert found == ((0, 0, 400, 200), WHOLE, NONE[answer], answer)


def test_thousandths_of_the_sides():
    found = find_box("<|box_start|>(250,100),(500,1000)<|box_end|>", TITLE, FRAME, "relative")
    assert found.box == pytest.approx((100, 20, 200, 200))


def test_the_white_around_a_strip_is_no_part_of_the_picture():
    """40 x 400 px at a ratio of 4 at most: 30 px of white on both sides, then 100 x 400 -> 25 x 100."""
    data = DataConfig(max_aspect=4.0, min_pixels=1, max_pixels=25 * 100)
    frame = Frame.of((40, 400), data, VisionConfig(patch_size=5, spatial_merge_size=1))
    assert frame == ((40, 400), (100, 400), (25, 100))
    assert find_box("[10, 50, 15, 75]", "", frame, "absolute").box == pytest.approx((10, 200, 30, 300))
    assert find_box("[0, 50, 15, 75]", "", frame, "absolute").box == pytest.approx((0, 200, 30, 300))
    assert find_box("[0, 50, 7, 75]", "", frame, "absolute").reason == "box outside the picture"
    assert frame.to_model((10.0, 200.0, 30.0, 300.0), "absolute") == (10, 50, 15, 75)
    assert frame.to_model((10.0, 200.0, 30.0, 300.0), "relative") == (400, 500, 600, 750)


def test_hostile_answers_take_no_time():
    start = time.process_time()
    read_boxes("x1=1" + " " * 100_000)
    read_boxes("[1" + " " * 100_000)
    for piece in (
        "[1, 2, ",
        "(1,2),",
        "{",
        '"label": "',
        "x1=1",
        " ",
        "[1.",
        "9",
        "[10, 20, 60, 90] ",
        "[[1,2],",
        "'label': '",
        "'",
        "<1>",
        "x=1,",
        "1 ",
        "[1,2],",
        "(1,2) to ",
        "name ",
        "\ufdfa",
    ):
        read_boxes(piece * 100_000)
    assert time.process_time() - start < 3

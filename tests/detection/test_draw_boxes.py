"""Pictures of predictions: which pixels a box takes, what is told apart, and how a sheet is laid out."""

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from scratchvit.detection.data.annotations import Annotations
from scratchvit.detection.draw_boxes import COLOURS, draw_boxes, sheet, write_predictions
from scratchvit.errors import ScratchvitError

GREY = (90, 120, 100)
WHITE, BLACK = (255, 255, 255), (0, 0, 0)
CLASSES = [f"c{i}" for i in range(8)]


def ground(width=200, height=150, colour=GREY):
    return Image.new("RGB", (width, height), colour)


def found(*boxes, labels=None, scores=None):
    count = len(boxes)
    return {
        "boxes": np.array(boxes, np.float32).reshape(count, 4),
        "labels": np.array(labels if labels is not None else [0] * count, np.int64),
        "scores": np.array(scores if scores is not None else [0.9] * count, np.float32),
    }


def there(*boxes, crowd=False):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return Annotations(1, "a.png", (150, 200), boxes, np.zeros(len(boxes), np.int64), np.ones(len(boxes)),
                       np.full(len(boxes), crowd))


def where(picture, colour):
    """bool (H, W): the pixels of that colour."""
    return (np.asarray(picture) == (ImageColor.getrgb(colour) if isinstance(colour, str) else colour)).all(axis=-1)


def frame(shape, left, top, right, bottom, width=2):
    """bool of that shape: a line of that width along the inside of a box of whole pixels."""
    mask = np.zeros(shape, bool)
    mask[top:bottom, left:right] = True
    mask[top + width : bottom - width, left + width : right - width] = False
    return mask


def test_a_found_box_takes_the_pixels_inside_its_edges():
    picture = ground()
    drawn = draw_boxes(picture, CLASSES, found((20, 40, 80, 100)))
    line, tag = where(drawn, COLOURS[0]), slice(0, 40)
    assert (line[40:] == frame(line.shape, 20, 40, 80, 100)[40:]).all()
    touched = ~where(drawn, GREY)
    assert (touched[40:] == line[40:]).all()            # nothing else below the tag, which stands on the box
    rows, columns = np.nonzero(touched[tag])
    assert (rows.max(), columns.min()) == (39, 20)
    assert where(picture, GREY).all()                   # the picture itself is as it was


@pytest.mark.parametrize(
    ("size", "side", "box", "edges"),
    [
        ((50, 40), 200, (10, 20, 20.5, 30), (40, 80, 82, 120)),     # 4 pixels for one
        ((50, 40), 199, (10, 20, 20, 30), (30, 60, 60, 90)),        # a whole factor
        ((800, 600), 200, (80, 160, 320, 400), (20, 40, 80, 100)),  # a quarter
        ((200, 150), None, (20, 40, 80, 100), (20, 40, 80, 100)),
    ],
)
def test_boxes_follow_the_size_that_is_asked_for(size, side, box, edges):
    drawn = draw_boxes(ground(*size), CLASSES, found(box), side=side)
    line, top = where(drawn, COLOURS[0]), edges[1]
    assert (line[top:] == frame(line.shape, *edges)[top:]).all()


def test_what_is_there_is_dashed_in_white_and_black_with_gaps():
    drawn = draw_boxes(ground(), CLASSES, truth=there((20, 10, 80, 70)))
    line = frame((150, 200), 20, 10, 80, 70)
    white, black, untouched = where(drawn, WHITE), where(drawn, BLACK), where(drawn, GREY)
    assert untouched[~line][: 70 * 200 - line.sum()].all()          # its name is below row 70
    for colour in (white, black, untouched):
        for side in (colour[10], colour[69], colour[:, 20], colour[:, 79]):
            assert (side & line.any(axis=0 if side.size == 200 else 1)).sum() >= 5
        assert colour[line].mean() > 0.2
    assert (~untouched)[70:].any()


def test_of_two_boxes_in_one_place_both_are_seen():
    drawn = draw_boxes(ground(), CLASSES, found((20, 40, 80, 100)), there((20, 40, 80, 100)))
    line = frame((150, 200), 20, 40, 80, 100)[40:100]
    for colour in (WHITE, BLACK, COLOURS[0]):
        assert where(drawn, colour)[40:100][line].mean() > 0.2


def test_classes_have_their_colours_and_begin_again():
    for label, colour in ((1, COLOURS[1]), (7, COLOURS[1])):
        drawn = draw_boxes(ground(), CLASSES, found((20, 40, 80, 100), labels=[label]))
        assert where(drawn, colour)[99, 20:80].all()
    assert len({*COLOURS}) == len(COLOURS)


def test_text_is_dark_on_light_and_light_on_dark():
    for label, on_it in ((0, WHITE), (3, BLACK)):
        tag = draw_boxes(ground(), CLASSES, found((20, 40, 80, 100), labels=[label])).crop((0, 0, 200, 40))
        assert where(tag, COLOURS[label]).any()
        assert where(tag, on_it).any()


def test_the_surest_is_on_top_and_the_unsure_are_not_drawn():
    boxes, labels = [(20, 40, 80, 100)] * 3, [1, 2, 3]
    drawn = draw_boxes(ground(), CLASSES, found(*boxes, labels=labels, scores=[0.7, 0.9, 0.6]), threshold=0.65)
    assert where(drawn, COLOURS[2])[99, 20:80].all()
    apart = [(20, 40, 80, 100), (100, 40, 160, 100)]
    drawn = draw_boxes(ground(), CLASSES, found(*apart, scores=[0.5, 0.49]), threshold=0.5)
    assert where(drawn, COLOURS[0])[99, 20:80].all()
    assert where(drawn, GREY)[:, 100:].all()


def test_names_and_scores_are_written():
    """By what changes: the tag is as wide as its text, and another text has other pixels."""
    def tag(name, score):
        drawn = draw_boxes(ground(), [name], found((20, 40, 80, 100), scores=[score]))
        return ~where(drawn, GREY)[:40], np.asarray(drawn)[:40]

    assert tag("cat", 0.9)[0].any(axis=0).sum() < tag("caterpillar", 0.9)[0].any(axis=0).sum()
    assert (tag("cat", 0.91)[1] != tag("cat", 0.73)[1]).any()
    single = np.asarray(draw_boxes(ground(), CLASSES, truth=there((20, 10, 80, 70))))
    crowd = np.asarray(draw_boxes(ground(), CLASSES, truth=there((20, 10, 80, 70), crowd=True)))
    assert (single[:70] == crowd[:70]).all()
    assert (single[70:] != crowd[70:]).any()


@pytest.mark.parametrize("scores", [[0.3, 0.2], []])
def test_a_picture_where_nothing_is_sure_says_so(scores):
    boxes = [(20, 40, 80, 100)] * len(scores)
    drawn = draw_boxes(ground(), CLASSES, found(*boxes, scores=scores))
    assert where(drawn, WHITE)[:10, :60].any()
    assert where(drawn, GREY)[40:].all()
    assert where(draw_boxes(ground(), CLASSES), GREY).all()         # nobody looked: nothing is said


def test_boxes_beyond_the_border_are_cut_off():
    drawn = draw_boxes(ground(), CLASSES, found((-30, 40, 80, 100)), there((120, 60, 260, 190)))
    assert where(drawn, COLOURS[0])[40:100, 0:2].all()
    assert not where(drawn, GREY)[148:150, 160:].all()
    assert where(drawn, GREY)[70:130, 130:190].all()


@pytest.mark.parametrize("box", [(-40, 10, -5, 30), (200, 10, 240, 30), (10, 150, 20, 170), (10, 10, np.nan, 30)])
def test_boxes_outside_and_without_numbers_are_not_drawn(box):
    assert where(draw_boxes(ground(), CLASSES, found(box), there(box)), GREY).all()


@pytest.mark.parametrize("box", [(60, 60, 60, 60), (60, 60, 60.2, 90), (199.9, 149.9, 200, 150), (90, 90, 60, 60)])
def test_the_smallest_boxes_are_a_pixel(box):
    drawn = draw_boxes(ground(), CLASSES, found(box), there(box))
    column, row = (min(int(at), most) for at, most in zip(box[:2], (199, 149)))
    assert not where(drawn, GREY)[row, column]


def test_every_corner_keeps_its_tag_in_the_picture():
    for box in ((0, 0, 20, 20), (180, 0, 200, 20), (0, 130, 20, 150), (180, 130, 200, 150)):
        drawn = draw_boxes(ground(), CLASSES, found(box), there(box, crowd=True))
        tags = {colour: where(drawn, colour).any(axis=0).sum() for colour in (COLOURS[0], WHITE)}
        assert tags[COLOURS[0]] > 35            # "c0: 0.90"
        assert tags[WHITE] > 50                 # "c0 (ignored)"


def test_a_text_wider_than_the_picture_keeps_its_beginning_and_its_score(monkeypatch):
    written, own = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text",
        lambda self, place, text, *rest: written.append((place[0], text, self.textlength(text, rest[1])))
        or own(self, place, text, *rest),
    )
    found = {"scores": np.array([0.92]), "labels": np.array([0]), "boxes": np.array([[10.0, 40, 90, 90]])}
    draw_boxes(Image.new("RGB", (100, 100)), ["a class whose name is long"], found)
    ((left, text, length),) = written
    assert text.startswith("a cla") and text.endswith(": 0.92") and "…" in text
    assert left >= 0 and left + length <= 100


def test_a_sheet_lays_pictures_in_rows():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    sizes = [(30, 20), (40, 10), (20, 20), (10, 30), (30, 30)]
    whole = sheet([ground(*size, colour) for size, colour in zip(sizes, colours)], columns=2, caption="below")
    corners = [(8, 8), (46, 8), (8, 36), (46, 36), (8, 74)]
    for (left, top), (width, height), colour in zip(corners, sizes, colours):
        expected = np.zeros((whole.height, whole.width), bool)
        expected[top : top + height, left : left + width] = True
        assert (where(whole, colour) == expected).all()
    assert whole.width == 8 + 30 + 8 + 40 + 8
    assert not where(whole, WHITE)[104:].all()          # the caption
    assert sheet([ground(30, 20)]).size == (46, 36)


def test_a_file_of_predictions(tmp_path):
    examples = [(ground(50, 40), there((10, 20, 20, 30))), (ground(50, 40), None)]
    boxes = [found((10, 10, 40, 30), labels=[2]), found()]
    path = tmp_path / "epoch.png"
    write_predictions(path, examples, boxes, CLASSES, side=200)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.width == 3 * 8 + 2 * 200
        first = np.asarray(picture)[8:168, 8:208]
    assert (first == np.asarray(draw_boxes(*examples[0][:1], CLASSES, boxes[0], examples[0][1], side=200))).all()
    assert [each.name for each in tmp_path.iterdir()] == ["epoch.png"]
    with pytest.raises(ScratchvitError, match=r"gone.*could not be written"):
        write_predictions(tmp_path / "gone" / "a.png", examples, boxes, CLASSES)

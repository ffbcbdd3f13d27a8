"""Notes beside marks stand at their line, on logarithmic axes too."""

import pytest

from tangency import drawing


def test_notes_stand_at_their_lines():
    figure = drawing.new_figure("", "x", "y", x_axis="log")
    drawing.horizontal(figure, 3.0, "level")
    drawing.vertical(figure, 100.0, "mark")
    lines = figure.layout.shapes
    assert lines[0].y0 == 3
    assert lines[1].x0 == 100
    level, mark = figure.layout.annotations
    assert level.y == 3
    assert mark.x == pytest.approx(2)


def test_notes_in_panels():
    figure = drawing.panels("", ["one", "two"])
    for column in (1, 2):  # Plotly draws lines in panels that hold something
        drawing.line(figure, [1, 2], [1, 2], "line", row=1, col=column)
    figure.update_yaxes(type="log", row=1, col=2)
    drawing.horizontal(figure, 0.001, "low", row=1, col=2)
    drawing.horizontal(figure, 0.001, "low", row=1, col=1)
    logarithmic, linear = figure.layout.annotations[2:]
    assert logarithmic.y == pytest.approx(-3)
    assert linear.y == 0.001

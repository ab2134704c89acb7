"""The picture in the README is what an operator sees today."""

import xml.etree.ElementTree as ElementTree

from tests.packaging import pictures


def test_the_picture_is_what_status_shows_now() -> None:
    """If this fails because the page of `reconsup status` changed: python -m tests.packaging.pictures."""
    assert pictures.PICTURE.read_text() == pictures.status_picture()


def test_the_picture_can_be_shown_anywhere() -> None:
    """One file: no script, no link, no font to be fetched; and nobody's secret in it."""
    text = pictures.PICTURE.read_text()
    tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
    assert tags == {"svg", "rect", "circle", "g", "text"}
    assert "href" not in text
    assert "url(" not in text
    assert "4 of 4 workers ready" in text

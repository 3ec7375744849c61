"""Which package a language is in, and what the fact reads."""

from facts.tesseract import Tesseract, TesseractState
from operations.tesseract import package


def test_package_of_a_language():
    assert package("eng") == "tesseract-ocr-eng"
    assert package("chi_sim") == "tesseract-ocr-chi-sim"


def test_fact():
    read = Tesseract.__new__(Tesseract).process
    assert read(["version\t5.3.0", "language\teng", "language\tosd"]) == TesseractState("5.3.0", ("eng", "osd"))
    assert read([]) == TesseractState()

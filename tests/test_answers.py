"""Answers in generated text: a table of nasty cases, and properties of every number."""

import random
from decimal import Decimal

import pytest

from graft.tasks._answers import boxed, gold_boxed, gold_number, letter, normal_latex, number, whole_number


@pytest.mark.parametrize(("text", "strict", "flexible"), [
    ("#### 18", "18", "18"), ("####18", "18", "18"), ("####\n 18", "18", "18"),
    ("#### 1,234", "1234", "1234"), ("#### 1234.0", "1234", "1234"), ("#### 109,200,000", "109200000", "109200000"),
    ("#### $18.00", "18", "18"), ("#### \\$18.50", "18.5", "18.5"), ("#### $ 18", "18", "18"),
    ("#### -5", "-5", "-5"), ("#### −5", "-5", "-5"), ("#### $-5", "-5", "-5"), ("#### -$5", "-5", "-5"),
    ("#### +5", "5", "5"), ("#### -0", "0", "0"), ("#### -0.00", "0", "0"), ("#### 007", "7", "7"),
    ("#### .5", "0.5", "0.5"), ("#### 0.50", "0.5", "0.5"), ("#### 50%", "50", "50"), ("#### 3.", "3", "3"),
    ("#### 18 dollars, not 20", "18", "18"), ("#### 5, because 6", "5", "5"),
    ("#### 1\nQuestion: 2\n#### 3", "3", "3"), ("#### 1\n#### none", "1", "1"), ("##### 4", "4", "4"),
    ("#### 10,00", "1000", "1000"), ("#### 1/2", "", "2"), ("#### 3e5", "", "3"), ("#### 7:30", "", "30"),
    ("#### 2^10", "", "10"), ("#### 12.5.1", "", "1"), ("#### 12 / 5", "", "5"), ("#### 3 each", "3", "3"),
    ("### 18", "", "18"), ("#### x = 18", "", "18"), ("#### **18**", "", "18"), ("#### ", "", ""), ("", "", ""),
    ("The answer is 3.", "", "3"), ("so $1,234.50.", "", "1234.5"), ("it costs $12.", "", "12"), ("$18.00", "", "18"),
    ("from 1, 2 or 3", "", "3"), ("1,2,3", "", "3"), ("12,3456", "", "3456"), ("1,234,567", "", "1234567"),
    ("10-5", "", "5"), ("x=-5", "", "-5"), ("10 - 5 = 5 left", "", "5"), ("it is −7 degrees", "", "-7"),
    ("H20", "", ""), ("at 5pm", "", "5"), ("75% of them", "", "75"), ("in 0.25 of .5", "", "0.5"), ("-$3", "", "-3"),
    ("<<48/2=24>>24 clips", "", "24"), ("\\boxed{42}", "", "42"), ("no number", "", ""), ("a.b, $ - %", "", ""),
    ("１２", "", "")])
def test_numbers(text, strict, flexible):
    assert number(text) == (strict, flexible)


def test_equal_numbers_have_one_spelling_and_others_have_another():
    draw, spelled = random.Random(0), {}
    for _ in range(2000):
        high = 10 ** draw.randrange(1, 12)
        value = Decimal(draw.randrange(-high, high)) / 10 ** draw.randrange(4)
        writings = [f"{value:f}", f"{value:,f}", f"{value:.4f}", f"${value:,.3f}", f"{value:f}%", f"{value:f}."]
        found = {one for w in writings for one in (*number(f"Thus 7.\n#### {w}"), number(f"Thus 7, or {w}")[1])}
        assert len(found) == 1, (writings, found)
        assert Decimal(found.copy().pop()) == value and spelled.setdefault(value, found) == found
    assert len({found for (found,) in spelled.values()}) == len(spelled)


def test_thousands_of_digits_are_still_a_number():
    assert number("#### " + "9" * 6000)[0] == "9" * 6000  # int() refuses that many


@pytest.mark.parametrize(("text", "strict", "flexible"), [
    (r"so $\boxed{5}$.", "5", "5"), (r"\boxed{1} then \boxed{2}", "2", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}", None),
    (r"\boxed{\dfrac12}", r"\frac{1}{2}", None), (r"\boxed{1/2}", r"\frac{1}{2}", None),
    (r"\boxed{\{ 1} and }", r"\{1", None), (r"\boxed{\{1,2\}}", r"\{1,2\}", None),
    (r"\boxed{\left\{ 1 \right\}}", r"\{1\}", None), (r"\boxed 7", "7", "7"),
    (r"\boxed 7$. Done", "7", "7"), (r"\fbox{8}", "8", "8"), (r"\boxed{1}, \boxed{2", "1", "1"),
    (r"\boxed{\text{E}}", "E", "E"),
    (r"\boxed{3{,}000}", "3000", None), ("It is 12.", "", "12"), ("", "", "")])
def test_boxes(text, strict, flexible):
    assert boxed(text) == (strict, strict if flexible is None else flexible)


@pytest.mark.parametrize("same", [
    ["1/2", r"\frac{1}{2}", r"\dfrac{1}{2}", r"\tfrac 1 2", r"\frac12", r"$\frac1{2}$", r"\frac{1}2"],
    [r"5\text{ cm}", "5", "5.", "5.0", r"5 \mbox{ inches}^2", "$5$", r"\$5", r"5\%", "x = 5", r"5^\circ", r"5^{\circ}"],
    ["10,000", "10000", r"10{,}000", r"10,\!000"], [".5", "0.5", "0.50"], [r"\sqrt2", r"\sqrt{2}"],
    [r"\left( 1, 2 \right)", "(1,2)"], [r"\text{Evelyn}", "Evelyn", r"\textbf{Evelyn}"],
    [r"3\sqrt{2}", r"3 \sqrt{2}", r"3\,\sqrt 2"], [r"\leftarrow"], ["(1,000)"], ["-5"], ["12,34"], [r"x=y=5"],
    [r"\frac{-1}{2}"], [r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
                         r"\begin{pmatrix} 1 \\\ 2 \end{pmatrix}"]])
def test_latex_has_one_spelling_within_a_kind_and_others_between(same):
    kinds = {normal_latex(answer) for answer in same}
    assert len(kinds) == 1
    assert kinds <= {r"\frac{1}{2}", "5", "10000", "0.5", r"\sqrt{2}", "(1,2)", "Evelyn", r"3\sqrt{2}", r"\leftarrow",
                     "(1,000)", "-5", "12,34", "y=5", r"\frac{-1}{2}",
                     r"\begin{pmatrix}1\\2\end{pmatrix}"}


@pytest.mark.parametrize(("text", "strict", "flexible"), [
    ("The answer is (B).", "B", "B"), ("the ANSWER IS (C)", "C", "C"),
    ("The answer is (A). No, the answer is (D).", "D", "D"),
    ("The answer is B.", "", "B"), ("the answer is: **E**", "", "E"),
    ("(A) cat (B) dog. The answer is B, not (C).", "", "B"),
    ("I choose (D)", "", "D"), ("Either (A) or (C)", "", "C"), ("It is C", "", "C"), ("The answer is Apple", "", ""),
    ("answer is a dog", "", ""), ("The answer is (F).", "", ""), ("D's bag", "", ""), ("", "", "")])
def test_letters(text, strict, flexible):
    assert letter(text) == (strict, flexible)


@pytest.mark.parametrize(("text", "gold"), [
    ("So.\n#### 18", "18"), ("#### 1\n#### -2,345.50", "-2345.5"), ("####$ 5%.", "5"), ("#### .5", "0.5"),
    ("#### 1/2", ""), ("#### 3e5", ""), ("#### 7:30", ""), ("#### 1 1/2", ""), ("#### 5 or 6", ""), ("#### 1,2", ""),
    ("#### 12,3456", ""), ("#### 2 hours", ""), ("#### 5\nmore", ""), ("#### 1..2", ""), ("#### --5", ""),
    ("#### 5\n####", ""), ("5", ""), ("#### " + "9" * 6000, "9" * 6000)])
def test_a_gold_number_is_read_whole_or_not_at_all(text, gold):
    assert gold_number(text) == gold and (not gold or number(text)[0] == gold)
    assert not gold or whole_number(text.rsplit("####")[-1]) == gold


@pytest.mark.parametrize(("text", "gold"), [
    (r"\boxed{1} or \boxed{2}", "2"), (r"\boxed{1}, \boxed{2", ""), (r"\boxed 3.5", "3.5"), (r"\boxed 1,000.", "1000"),
    (r"\boxed{}", ""), ("5", ""), (r"\boxed{\frac{1}{2}", "")])
def test_a_gold_box_is_read_whole_or_not_at_all(text, gold):
    assert gold_boxed(text) == gold and (not gold or boxed(text)[0] == gold)

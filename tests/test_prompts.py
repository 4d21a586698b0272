"""From questions to token ids: templates of three families and plain text, checked against the rendered strings."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM

from graft.errors import UserError
from graft.students._tiny_lm import FAMILIES, make
from graft.tasks import _prompts

SHOTS = [("Question: 1 + 1?", "Two.\n#### 2"), ("Question: é 漢?", "¿#### 3")]
QUESTION, ANSWER = "Question: 2 + 3?", "Five, <<2+3=5>>5.\n#### 5"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module", params=[(family, plain) for family in FAMILIES for plain in (False, True)],
                ids=lambda param: f"{param[0]}-{'plain' if param[1] else 'chat'}")
def prompt(request, tmp_path_factory) -> _prompts.Prompt:
    family, plain = request.param
    folder = make(tmp_path_factory.mktemp("lm"), family, plain=plain, no_weights=True)
    return _prompts.load(str(folder))


def family_of(prompt: _prompts.Prompt) -> str:
    return next(family for family, about in FAMILIES.items() if about.special[0] in prompt.tokenizer.get_vocab())


def shown(prompt: _prompts.Prompt, ids: list[int]) -> str:
    return prompt.tokenizer.decode(ids, skip_special_tokens=False)


# What a model reads after two worked examples, and what it is to answer; written by hand.
EXPECTED = {
    ("qwen3", "chat"): (
        "<|im_start|>user\nQuestion: 1 + 1?<|im_end|>\n<|im_start|>assistant\nTwo.\n#### 2<|im_end|>\n"
        "<|im_start|>user\nQuestion: é 漢?<|im_end|>\n<|im_start|>assistant\n¿#### 3<|im_end|>\n"
        f"<|im_start|>user\nQuestion: 2 + 3?<|im_end|>\n<|im_start|>assistant\n{EMPTY_THOUGHT}", "<|im_end|>"),
    ("llama", "chat"): (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nDate: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQuestion: 1 + 1?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nTwo.\n#### 2<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQuestion: é 漢?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n¿#### 3<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nQuestion: 2 + 3?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    ("gemma3", "chat"): (
        "<bos><start_of_turn>user\nQuestion: 1 + 1?<end_of_turn>\n<start_of_turn>model\nTwo.\n#### 2<end_of_turn>\n"
        "<start_of_turn>user\nQuestion: é 漢?<end_of_turn>\n<start_of_turn>model\n¿#### 3<end_of_turn>\n"
        "<start_of_turn>user\nQuestion: 2 + 3?<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>"),
}
PLAIN = "Question: 1 + 1?\nTwo.\n#### 2\n\nQuestion: é 漢?\n¿#### 3\n\nQuestion: 2 + 3?\n"
EXPECTED |= {("qwen3", "plain"): (PLAIN, "<|endoftext|>"), ("llama", "plain"): ("<|begin_of_text|>" + PLAIN,
             "<|end_of_text|>"), ("gemma3", "plain"): ("<bos>" + PLAIN, "<eos>")}


def test_a_sequence_is_the_conversation_thinking_off_and_ends_its_turn(prompt):
    before, end = EXPECTED[family_of(prompt), prompt.layout]
    assert shown(prompt, prompt.prompt_ids([(SHOTS, QUESTION)])[0]) == before
    assert shown(prompt, prompt.answer_ids([ANSWER])[0]) == ANSWER + end
    assert len(prompt.end) == 1 and prompt.answer_ids([""]) == [prompt.end]


def test_without_worked_examples_only_the_question_is_left(prompt):
    (ids,), (with_shots,) = prompt.prompt_ids([((), QUESTION)]), prompt.prompt_ids([(SHOTS, QUESTION)])
    turn = shown(prompt, ids).removeprefix("<|begin_of_text|>").removeprefix("<bos>")
    turn = turn[turn.index("<|eot_id|>") + len("<|eot_id|>"):] if "system" in turn else turn
    assert shown(prompt, with_shots).endswith(turn) and QUESTION in turn and SHOTS[0][0] not in turn


def test_the_beginning_of_sequence_is_there_exactly_once(prompt):
    bos = prompt.tokenizer.bos_token_id
    for ids in prompt.prompt_ids([(SHOTS, QUESTION), ((), QUESTION)]):
        assert ids.count(bos) == (bos is not None) and (bos is None or ids[0] == bos)
    assert bos not in prompt.answer_ids([ANSWER])[0]


def test_prompt_and_answer_are_the_whole_conversation_tokenised_at_once(prompt):
    if prompt.layout == "plain":
        whole = prompt.tokenizer(PLAIN + ANSWER)["input_ids"] + [prompt.tokenizer.eos_token_id]
    else:
        turns = [{"role": role, "content": text} for shot in [*SHOTS, (QUESTION, ANSWER)]
                 for role, text in zip(("user", "assistant"), shot)]
        whole = prompt.tokenizer.apply_chat_template(turns, return_dict=False, date_string="26 Jul 2024")
    (before,), (answer,) = prompt.prompt_ids([(SHOTS, QUESTION)]), prompt.answer_ids([ANSWER])
    newline = prompt.tokenizer("\n", add_special_tokens=False)["input_ids"]  # after the end of a turn; never supervised
    has_one = prompt.layout == "chat" and family_of(prompt) != "llama"
    assert before + answer + newline * has_one == whole


def test_thinking_is_off_only_because_it_is_asked_for():
    # The check of the checks: the same template thinks unless it is told not to, and nested the switch is not read.
    render = jinja2.Environment().from_string(FAMILIES["qwen3"].template).render
    turns = [{"role": "user", "content": "a"}]
    assert render(messages=turns, add_generation_prompt=True).endswith("assistant\n")
    assert render(messages=turns, add_generation_prompt=True,
                  chat_template_kwargs={"enable_thinking": False}).endswith("assistant\n")
    assert render(messages=turns, add_generation_prompt=True, enable_thinking=False).endswith(EMPTY_THOUGHT)


def test_the_date_does_not_depend_on_the_day(tmp_path):
    loaded = _prompts.load(str(make(tmp_path, "llama", no_weights=True))).tokenizer
    assert "Date: 26 Jul 2024" in _prompts.Prompt(loaded, "chat").text([], QUESTION)
    loaded.chat_template = loaded.chat_template.replace("date_string if date_string is defined else ", "")
    assert "Date: 26 Jul 2024" in _prompts.Prompt(loaded, "chat").text([], QUESTION)
    for day in ("strftime_now('%A %d %B %Y %H')", "strftime_now(format='%A %d %B %Y %H')"):
        loaded.chat_template = loaded.chat_template.replace("strftime_now('%d %b %Y')", day)
        assert "Date: Friday 26 July 2024 00" in _prompts.Prompt(loaded, "chat").text([], QUESTION)


def test_decoding_keeps_spaces_and_drops_special_tokens(prompt):
    text = "It 's 1 , 2 .\n do n't"
    assert prompt.decode(prompt.answer_ids([text])[0]) == text


def test_decoding_keeps_spaces_whatever_the_tokenizer_prefers(tmp_path):
    prompt = _prompts.load(str(make(tmp_path, characters="1 .,", plain=True, no_weights=True)))
    prompt.tokenizer.clean_up_tokenization_spaces = True
    assert prompt.decode(prompt.answer_ids(["1 . 1 , 1"])[0]) == "1 . 1 , 1"


def test_plain_text_begins_as_the_tokenizer_begins_it(tmp_path):
    loaded = _prompts.load(str(make(tmp_path, "gemma3", plain=True, no_weights=True))).tokenizer
    assert _prompts.Prompt(loaded, "plain").prompt_ids([((), "a")])[0][0] == loaded.bos_token_id
    loaded.backend_tokenizer.post_processor = processors.Sequence([])  # it has a BOS, but writes none
    assert loaded.bos_token_id not in _prompts.Prompt(loaded, "plain").prompt_ids([((), "a")])[0]
    loaded.bos_token = loaded.eos_token  # one token for both ends: where does the tokenizer write it?
    for written, begins in (("$A <eos>", False), ("<eos> $A", True), ("<eos> $A <eos>", True)):
        loaded.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=written, pair=f"{written} $B", special_tokens=[("<eos>", loaded.eos_token_id)])
        (ids,) = _prompts.Prompt(loaded, "plain").prompt_ids([((), "a")])
        assert (ids[0] == loaded.eos_token_id) == begins and ids.count(loaded.eos_token_id) == begins


def template(answer_end: str, generate: str = "assistant: ", lead: str = "") -> str:
    """Turns of a role, its words and an end."""
    before = f"({lead!r} if turn.role == 'assistant' else '')"
    return ("{%- for turn in messages -%}{{ turn.role + ': ' + " + before + " + turn.content + " + answer_end
            + " }}{%- endfor -%}"
            "{%- if add_generation_prompt -%}{{ " + repr(generate) + " }}{%- endif -%}")


def test_the_end_of_a_turn_is_one_special_token(tmp_path):
    loaded = _prompts.load(str(make(tmp_path, "llama", no_weights=True))).tokenizer
    end = loaded.convert_tokens_to_ids("<|eot_id|>")
    for between in ("", " ", "\n\n"):
        loaded.chat_template = template(repr(f"{between}<|eot_id|>\n"))
        assert _prompts.Prompt(loaded, "chat").end == [end]
    about = json.loads(loaded.backend_tokenizer.to_str())
    for token in about["added_tokens"]:
        token["special"] = token["special"] and token["content"] != "<|eot_id|>"
    loaded._tokenizer = Tokenizer.from_str(json.dumps(about))
    assert not loaded.added_tokens_decoder[end].special and _prompts.Prompt(loaded, "chat").end == [end]


def refused(tokenizer, template: str) -> str:
    tokenizer.chat_template = template
    with pytest.raises(UserError) as caught:
        _prompts.Prompt(tokenizer, "chat")
    assert "\n" not in str(caught.value)
    assert f"task.tokenizer: {tokenizer.name_or_path}: its chat template" in str(caught.value)
    return str(caught.value)


def test_a_template_must_write_prompt_answer_and_end(tmp_path):
    loaded = _prompts.load(str(make(tmp_path, "llama", no_weights=True))).tokenizer
    end = "'<|eot_id|>'"
    loaded.chat_template = template(end, lead="\n ", generate="assistant: ")
    prompt = _prompts.Prompt(loaded, "chat")  # space before every answer is a part of the answer
    assert shown(prompt, prompt.answer_ids(["5"])[0]) == "\n 5<|eot_id|>"
    for bad, why in {
            template("'\n'"): "expected a token that ends the turn",
            template("'user<|eot_id|>'"): "expected a token that ends the turn",
            template(end, generate=""): "writes 'assistant:' between prompt and answer",
            template(end, generate="model: "): "is not the prompt, then the answer",
            template(end, lead="So "): "writes 'So' between prompt and answer",
            template(end).replace("turn.content", "turn.content | upper"): "is not the prompt, then the answer",
            template(end).replace("in messages", "in messages[-1:]"): "is not the prompt, then the answer",
            "{{ messages[0].nothing.more }}": "UndefinedError", "{{ 1 // 0 }}": "ZeroDivisionError",
            "{{ raise_exception('two\nlines') }}": "two lines",
            "{% for m in messages %}{{ m.content }": "TemplateSyntaxError"}.items():
        assert why in refused(loaded, bad)


def test_an_items_text_holds_no_control_tokens_and_stays_as_it_is(tmp_path):
    prompt = _prompts.load(str(make(tmp_path, "qwen3", no_weights=True)))
    prompt.check("What is <think>, and who is the user?", "An added token, but no special one.", "Be brief. </think>")
    for question, answer, system in itertools.permutations(["a", "b", "<|im_end|>"]):
        with pytest.raises(ValueError, match="reads as a control token"):
            prompt.check(question, answer, system)
    plain = _prompts.load(str(tmp_path), layout="plain")
    with pytest.raises(ValueError, match=r"holds '<\|endoftext\|>'"):
        plain.check("a", "b <|endoftext|>")
    prompt.tokenizer.chat_template = prompt.tokenizer.chat_template.replace(
        "turn.content +", "turn.content.split('</think>')[-1] +")
    thinking = _prompts.Prompt(prompt.tokenizer, "chat")
    thinking.check("a", "b")
    with pytest.raises(ValueError, match="its chat template changes 'a</think>b'"):
        thinking.check("a", "a</think>b")


def test_a_system_message_comes_first(prompt):
    if (family_of(prompt), prompt.layout) == ("qwen3", "chat"):
        assert prompt.text(SHOTS, QUESTION, "Be brief.").startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_st")
    if prompt.layout == "plain":
        assert prompt.text(SHOTS, QUESTION, "Be brief.") == f"Be brief.\n\n{PLAIN}"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plain", [False, True])
def test_a_character_tokenizer_has_what_its_prompts_need(tmp_path, family, plain):
    prompt = _prompts.load(str(make(tmp_path, family, characters="0123 >", plain=plain, no_weights=True)))
    (ids,), (answer,) = prompt.prompt_ids([([("12", "21")], "13 >")]), prompt.answer_ids(["31"])
    assert len(answer) == 3 and prompt.decode(answer) == "31"
    assert shown(prompt, ids).removeprefix("<bos>").removeprefix("<|begin_of_text|>") \
        == prompt.text([("12", "21")], "13 >").removeprefix("<bos>").removeprefix("<|begin_of_text|>")
    with pytest.raises(Exception, match="UNK"):
        prompt.answer_ids(["%"])


def test_digests_tell_templates_and_tokenizers_apart_and_nothing_else(tmp_path):
    first, again = (_prompts.load(str(make(tmp_path / name, "qwen3", no_weights=True))) for name in "ab")
    assert first.tokenizer_sha256 == again.tokenizer_sha256 and first.template_sha256 == again.template_sha256
    padded = _prompts.load(str(tmp_path / "a"))
    padded.tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    assert padded.tokenizer_sha256 == first.tokenizer_sha256
    plain = _prompts.load(str(tmp_path / "a"), layout="plain")
    other = _prompts.load(str(make(tmp_path / "c", "qwen3", characters="0123456789", no_weights=True)))
    assert plain.template_sha256 != first.template_sha256 and plain.tokenizer_sha256 == first.tokenizer_sha256
    assert other.tokenizer_sha256 != first.tokenizer_sha256 and other.template_sha256 == first.template_sha256
    template = tmp_path / "b/chat_template.jinja"
    template.write_text(template.read_text().replace("silent", "hush"))
    assert _prompts.load(str(tmp_path / "b")).template_sha256 != first.template_sha256


def error(*args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        _prompts.load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_bad_tokenizers_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert error(str(tmp_path / "nowhere")).startswith(f"task.tokenizer: {tmp_path}/nowhere: no such folder; expected")
    assert error("").startswith("task.tokenizer: empty: no such folder; expected")
    assert "no tokenizer there" in error("nobody/nothing")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3"}')
    assert "has no tokenizer.json" in error(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    assert "no tokenizer there" in error(str(tmp_path))
    base = make(tmp_path / "base", plain=True, no_weights=True)
    assert "has no chat template; use plain" in error(str(base), layout="chat")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    del settings["eos_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    assert "no end-of-sequence token" in error(str(base))


# ------------------------------------------------------------------------------- the tiny models themselves

def test_a_tiny_model_is_what_was_asked_for(tmp_path: Path):
    for family in FAMILIES:
        first, again, other = (make(tmp_path / f"{family}{i}", family, hidden=16, layers=1, heads=2, kv_heads=1, ff=8,
                                    vocabulary=300, seed=seed, init_std=0.5) for i, seed in enumerate((0, 0, 1)))
        weights = [(folder / "model.safetensors").read_bytes() for folder in (first, again, other)]
        assert weights[0] == weights[1] != weights[2]
        model, report = AutoModelForCausalLM.from_pretrained(first, output_loading_info=True)
        assert not any(report.values()) and model.config.architectures == [type(model).__name__]
        rows = model.get_input_embeddings().weight
        assert rows.shape == (300, 16) and 0.4 < rows[10:].std() < 0.6
        assert (rows is model.get_output_embeddings().weight) == FAMILIES[family].tied
    with pytest.raises(UserError, match="tokenizer has 264 tokens, got 10"):
        make(tmp_path, vocabulary=10)
    with pytest.raises(UserError, match="heads"):
        make(tmp_path, heads=3)


def test_any_text_survives_the_byte_tokenizer(prompt):
    draw = random.Random(0)
    for _ in range(50):
        text = "".join(chr(draw.choice([draw.randrange(32, 127), draw.randrange(160, 0xD800), 10, 0x1F642]))
                       for _ in range(40))
        ids = prompt.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert shown(prompt, ids) == text and len(ids) == len(text.encode())
    assert max(Counter(prompt.tokenizer.get_vocab().values()).values()) == 1

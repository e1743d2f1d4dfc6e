"""Each family's special tokens, chat template and tokenizer, after the published checkpoints.

The vocabulary is a BPE trained on the spot, on bytes or, as of Llama, on text with marked spaces.
The tokens that mean more than text, their names, whether a prompt starts with one, and what the
templates write are those of the published ones.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from masters.models.tiny import CHAT_TEMPLATE, EVERYDAY_WORDS

VOCABULARY = 480
SPACE = "\u2581"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a family's tokenizer has beside text.

    Args:
        special: special tokens; their ids are 0, 1, 2 ... in this order.
        named: attribute of the tokenizer -> token, where the processor reads it from there.
        eos: the tokenizer's end token, which need not be what ends a turn.
        ends: what generation stops at; the first is what ends a turn.
        lead: what stands between the generation prompt and an answer.
        bytes: whether the vocabulary is one of bytes.
        pad: padding.
        bos: put before every text, where the tokenizer does so.
        image: the placeholder that image features replace.
        pictures: all tokens that belong to pictures and must never be answered.
        template: the chat template.
    """

    special: tuple[str, ...]
    eos: str
    ends: tuple[str, ...]
    pad: str
    image: str
    pictures: tuple[str, ...]
    template: str
    bos: str | None = None
    bytes: bool = True
    lead: str = ""
    named: dict[str, str] = field(default_factory=dict)


_CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_PICTURES = (
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_QWEN = Tokens(
    special=(*_CHATML, "<|object_ref_start|>", "<|box_start|>", "<|box_end|>", *_QWEN_PICTURES),
    eos="<|im_end|>",
    ends=("<|im_end|>", "<|endoftext|>"),
    pad="<|endoftext|>",
    image="<|image_pad|>",
    pictures=_QWEN_PICTURES,
    template=CHAT_TEMPLATE,
)

_INTERNVL = Tokens(
    special=(*_CHATML, "<img>", "</img>", "<IMG_CONTEXT>", "<video>", "<box>", "</box>"),
    named={
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    eos="<|im_end|>",
    ends=("<|im_end|>",),
    pad="<|endoftext|>",
    image="<IMG_CONTEXT>",
    pictures=("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
    template="""\
{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for content in message['content'] %}{% if content['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}\
{% elif content['type'] == 'text' %}{{ content['text'] }}{% endif %}{% endfor %}{% endif %}\
{{'<|im_end|>\\n'}}{% endfor %}\
{% if add_generation_prompt %}{{'<|im_start|>assistant\\n' }}{% endif %}""",
)

_GRID = tuple(f"<row_{row}_col_{col}>" for row in range(1, 7) for col in range(1, 7))
_IDEFICS_PICTURES = ("<fake_token_around_image>", "<image>", "<global-img>", *_GRID)
_IDEFICS_TURNS = """\
{% for message in messages %}{{message['role'] | capitalize}}\
{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n\
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""
_IDEFICS3 = Tokens(
    special=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|finetune_right_pad_id|>",
        "<end_of_utterance>",
        *_IDEFICS_PICTURES,
    ),
    eos="<|end_of_text|>",
    ends=("<end_of_utterance>", "<|end_of_text|>"),
    lead=" ",
    pad="<|finetune_right_pad_id|>",
    bos="<|begin_of_text|>",
    image="<image>",
    pictures=_IDEFICS_PICTURES,
    template="<|begin_of_text|>" + _IDEFICS_TURNS,
)
_SMOLVLM = Tokens(
    special=("<|endoftext|>", "<|im_start|>", "<end_of_utterance>", *_IDEFICS_PICTURES),
    named={
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    },
    eos="<end_of_utterance>",
    ends=("<end_of_utterance>",),
    lead=" ",
    pad="<|endoftext|>",
    image="<image>",
    pictures=_IDEFICS_PICTURES,
    template="<|im_start|>" + _IDEFICS_TURNS,
)

_ONEVISION = Tokens(
    special=(*_CHATML, "<image>", "<video>"),
    eos="<|im_end|>",
    ends=("<|im_end|>", "<|endoftext|>"),
    pad="<|endoftext|>",
    image="<image>",
    pictures=("<image>", "<video>"),
    template="""\
{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}\
{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{{ '\\n' + content['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
)

_GEMMA_PICTURES = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")
_GEMMA3 = Tokens(
    special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>", *_GEMMA_PICTURES),
    named={
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    },
    eos="<eos>",
    ends=("<end_of_turn>", "<eos>"),
    pad="<pad>",
    bos="<bos>",
    image="<image_soft_token>",
    pictures=_GEMMA_PICTURES,
    template="""\
{{ bos_token }}{%- for message in messages -%}\
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}\
{{ '<start_of_turn>' + role + '\\n' }}{%- for item in message['content'] -%}\
{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}\
{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}\
{{ '<end_of_turn>\\n' }}{%- endfor -%}\
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}""",
)

_LLAVA = Tokens(
    special=("<unk>", "<s>", "</s>", "<image>", "<pad>"),
    eos="</s>",
    ends=("</s>",),
    lead=" ",
    bytes=False,
    pad="<pad>",
    bos="<s>",
    image="<image>",
    pictures=("<image>",),
    template="""\
{% for message in messages %}{{ message['role'].upper() + ': '}}\
{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}\
{% endfor %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}\
{{ content['text'] + ' ' }}{% endfor %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
)

_GLM_PICTURES = (
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
    "<|video|>",
)
_GLM4V = Tokens(
    special=(
        "<|endoftext|>",
        "[gMASK]",
        "<sop>",
        "<|user|>",
        "<|assistant|>",
        "<|observation|>",
        *_GLM_PICTURES,
    ),
    eos="<|endoftext|>",
    ends=("<|endoftext|>", "<|user|>", "<|observation|>"),
    pad="<|endoftext|>",
    image="<|image|>",
    pictures=_GLM_PICTURES,
    template="""\
[gMASK]<sop>{%- for message in messages %}<|{{ message.role }}|>\n\
{%- for item in message.content %}\
{%- if item.type == 'image' %}<|begin_of_image|><|image|><|end_of_image|>\
{%- elif item.type == 'text' %}{{ item.text }}{% endif %}{% endfor %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}""",
)

#: By family.
TOKENS: dict[str, Tokens] = {
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "internvl": _INTERNVL,
    "internvl_qwen3": _INTERNVL,
    "idefics3": _IDEFICS3,
    "smolvlm": _SMOLVLM,
    "llava_onevision": _ONEVISION,
    "gemma3": _GEMMA3,
    "llava": _LLAVA,
    "glm4v": _GLM4V,
}


def train_tokenizer(tokens: Tokens, texts: Iterable[str]) -> Any:
    """The family's tokenizer, the same for the same texts."""
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    if tokens.bytes:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        # As Llama's: a mark for every space and one before each piece of text.
        alphabet = sorted({*string.printable, SPACE} - {" "})
        marks = [normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]
        tokenizer.normalizer = normalizers.Sequence(marks)
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace(SPACE, " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(tokens.special),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    words = EVERYDAY_WORDS.split()
    tokenizer.train_from_iterator([*texts, *words, *(" " + word for word in words)], trainer)
    if tokens.bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{tokens.bos} $A",
            special_tokens=[(tokens.bos, tokens.special.index(tokens.bos))],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=tokens.eos,
        pad_token=tokens.pad,
        **({} if tokens.bos is None else {"bos_token": tokens.bos}),
        **tokens.named,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        chat_template=tokens.template,
    )

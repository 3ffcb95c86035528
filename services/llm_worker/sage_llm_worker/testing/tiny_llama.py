"""A real but tiny model for tests of engines: built in a second, no download. Needs transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["CHAT_TEMPLATE", "TOOL_TEMPLATE", "tiny_llama"]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOL_TEMPLATE = (
    "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}"
    "Write <tool_call>JSON</tool_call> to call one.<|end|>{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}"
    "{{ message['content'] }}"
    '{% for call in message.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}</tool_call>{% endfor %}'
    "{% if message.tool_call_id %} for {{ message.tool_call_id }}{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if thinks %}<think>\n{% endif %}{% endif %}"
)
"""Tools as the format `hermes` has them, and reasoning that the template variable `thinks` opens."""
_CORPUS = (
    "A worker takes a request from the queue, runs it, and streams the answer back to whoever asked. ",
    "The scheduler knows which worker is free; the gateway knows who is waiting for what. ",
    "def handle(event, now): return [command for command in decide(event) if command.is_due(now)]\n",
    "Größe, naïve café, 東京の天気, Привет мир, emoji 🙂 and numbers 0123456789. ",
)


def tiny_llama(
    path: Path | str,
    *,
    vocab_size: int = 400,
    max_context: int = 512,
    chat_template: str | None = CHAT_TEMPLATE,
    special_tokens: Sequence[str] = (),
    corpus: Sequence[str] = _CORPUS,
) -> Path:
    """Write a Llama of about 0.5 million random, reproducible weights and its tokenizer to `path`; return it.

    The tokenizer is a byte-level BPE trained on `corpus` on the spot, so every text round-trips. What the model
    generates is noise, and half of its vocabulary are single bytes: a good test for incomplete characters.
    `special_tokens` come after `vocab_size` others.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    special = ["<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        list(corpus) * 4,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    begin, end = tokenizer.token_to_id("<|begin|>"), tokenizer.token_to_id("<|end|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", begin)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin|>",  # noqa: S106 - a token of text
        eos_token="<|end|>",  # noqa: S106 - a token of text
        pad_token="<|end|>",  # noqa: S106 - a token of text
        model_max_length=max_context,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens(list(special_tokens), special_tokens=True)
    fast.chat_template = chat_template
    fast.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(fast),
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=max_context,
                bos_token_id=begin,
                eos_token_id=end,
                pad_token_id=end,
                tie_word_embeddings=False,
                initializer_range=0.1,
            )
        )
    model.save_pretrained(folder)
    return folder

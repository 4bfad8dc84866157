"""The demo's tokenizer: one token for each byte, role and answer word, so that every text round-trips exactly."""

from typing import TYPE_CHECKING

from vllm_lora_router.tools.demo.answers import WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
ROLES = ("system", "user", "assistant", "tool")
SPECIALS = (PAD, BOS, EOS, *(f"<|{role}|>" for role in ROLES))
CONTEXT = 2048  # tokens of prompt and answer together

# The template writes `enable_thinking` and `reasoning_effort` into the prompt as text, so that a rendered or
# detokenized prompt shows whether they were set.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- set role = 'system' if message['role'] == 'developer' else message['role'] %}
{{- '<|' + role + '|>' + (message['content'] or '') + eos_token }}
{%- endfor %}
{%- if enable_thinking is defined %}
{{- '/think\n' if enable_thinking else '/no_think\n' }}
{%- endif %}
{%- if reasoning_effort is defined and reasoning_effort is not none %}
{{- '/effort ' + reasoning_effort + '\n' }}
{%- endif %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""


def demo_tokenizer() -> "PreTrainedTokenizerFast":
    """Return a fast tokenizer with the special tokens, the 256 bytes and the answer words, in this order."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast

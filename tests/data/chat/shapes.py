"""Chat templates of every kind, written with the special tokens of one small tokenizer (minimind), and
conversations that have everything in them.
"""

import random
from dataclasses import replace
from typing import Any

from tuner.config.schema import Chat
from tuner.data.conversation import Call, Conversation, Message

B, E = "<|im_start|>", "<|im_end|>"
MORE = (
    "<|box_start|>",
    "<|box_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|quad_start|>",
    "<|audio_start|>",
    "<|audio_end|>",
    "<|endoftext|>",
)
ALL = (B, E, *MORE)

CHATML = Chat(
    special=(B, E),
    system=f"{B}system\n{{text}}{E}\n",
    user=f"{B}user\n{{text}}{E}\n",
    assistant=f"{B}assistant\n{{text}}{E}\n",
    end=E,
)
HERMES = replace(
    CHATML,
    tools="# Tools\n<tools>\n{tools}\n</tools>",
    calls="{calls}",
    calls_gap="\n",
    call='<tool_call>\n{"name": "{name}", "arguments": {arguments}}\n</tool_call>',
    results=f"{B}user\n{{results}}{E}\n",
    result="<tool_response>\n{text}\n</tool_response>",
)
LAST = replace(HERMES, reasoning="<think>\n{text}\n</think>\n\n", no_reasoning="<think>\n\n</think>\n\n")
MISTRAL = Chat(
    special=ALL,
    begin=B,
    user="<|box_start|> {text} <|box_end|>",
    system="{text}\n\n",
    system_in="last_user",
    assistant=f" {{text}}{E}",
    prompt="",
    end=E,
    trim=("assistant",),
    tools="<|quad_start|>[{tools}]<|quad_start|>",
    tool='{"type": "function", "function": {raw}}',
    tool_join=", ",
    tools_in="last_user",
    calls="<|audio_start|>[{calls}]",
    call='{"name": "{name}", "arguments": {arguments}, "id": "{id}"}',
    call_join=", ",
    calls_turn=f"{{text}}{E}",
    calls_in="refused",
    id_length=9,
    results="{results}",
    result='<|object_ref_start|>{"content": {text}, "call_id": "{id}"}<|object_ref_end|>',
    result_join="",
)
LLAMA2 = Chat(
    special=(B, E),
    user=f"{B}[INST] {{text}} [/INST]",
    system="<<SYS>>\n{text}\n<</SYS>>\n\n",
    system_in="first_user",
    assistant=f" {{text}} {E}",
    prompt="",
    end=E,
    trim=("user", "assistant"),
)
LLAMA3 = Chat(
    special=ALL,
    begin="<|endoftext|>",
    system=f"{B}system\n\nToday\n{{text}}{E}",
    system_with_tools=f"{B}system\n\nTools\nToday\n{{text}}{E}",
    default_system="",
    user=f"{B}user\n\n{{text}}{E}",
    assistant=f"{B}assistant\n\n{{text}}{E}",
    end=E,
    trim=("system", "user", "assistant", "tool"),
    tools="Given: {tools}\n\n",
    tools_in="first_user",
    tool_indent=4,
    tool_join="\n\n",
    calls="{calls}",
    call='{"name": "{name}", "parameters": {arguments}}',
    calls_end="<|audio_end|>",
    results="{results}",
    result=f"{B}ipython\n\n{{json}}{E}",
    result_join="",
)
GLM = Chat(
    special=ALL,
    begin="<|endoftext|>",
    system="<|box_start|>\n{text}",
    user="<|audio_start|>\n{text}",
    assistant=f"{B}\n{{text}}",
    prompt=B,
    end="<|audio_start|>",
    end_in="next",
    calls_end="<|audio_end|>",
    stops=("<|endoftext|>",),
    tools="<|box_start|>\nYou{tools}",
    tools_in="first",
    tool="\n\n## {name}\n\n{function}\n{description}",
    tool_indent=4,
    tool_join="",
    calls="{calls}",
    calls_turn=f"{B}{{text}}",
    calls_in="apart",
    call="{name}\n{arguments}",
    call_join=B,
    results="{results}",
    result="<|audio_end|>\n{text}",
    result_join="",
)

SHAPES = {
    "plain": CHATML,
    "default system": replace(HERMES, default_system="You help."),
    "tools": HERMES,
    "thoughts in the last turns": LAST,
    "thoughts in every turn": replace(
        LAST,
        reasoning_in="every_turn",
        no_reasoning_in="every_turn",
        prompt=f"{B}assistant\n<think>\n\n</think>\n\n",
    ),
    "an empty thought instead of a hidden one": replace(LAST, no_reasoning_in="every_turn"),
    "a prompt that opens the thought": replace(
        LAST,
        special=ALL,
        system="{text}",
        user="<|audio_start|>{text}",
        assistant=f"<|audio_end|>{{text}}{E}",
        prompt="<|audio_end|><think>\n",
    ),
    "system in the last turn": MISTRAL,
    "system in the first turn": LLAMA2,
    "system in the first turn, trimmed alone": replace(LLAMA2, trim=("system", "user", "assistant"), begin=B),
    "tools in the first turn": LLAMA3,
    "ended by the next turn": GLM,
    "tools in a turn of their own": replace(
        HERMES,
        special=ALL,
        tools=f"{B}system name=<|box_start|>\n[{{tools}}]{E}\n",
        tool="{function} {parameters}",
        tools_in="after_system",
        calls="<|quad_start|><|box_start|>\n{calls}<|box_end|>",
        call_join=", ",
    ),
    "names and ids": replace(HERMES, result="{name} {id}: {text}", call="{id}: {name} {arguments}"),
    "no special tokens but one": Chat(
        system="{text} ",
        default_system="A chat.",
        user="USER: {text} ",
        assistant="ASSISTANT: {text}{eos}",
        prompt="ASSISTANT:",
        end="{eos}",
        finish="\n",
    ),
    "system refused": replace(CHATML, system_in="refused", finish="<|endoftext|>", special=ALL),
}

ASKED = [
    "Hi",
    "你好，世界",
    "a b",
    "two\n\nlines\n",
    "{text} {{x}} {% raw %}",
    'é🙂 "quotes" \\',
    " lead",
    "tail ",
    "x: {name}",
    "",
]
SAID = ["Hello!", "好的。", "a", "one\n\n- two\n", "{text} {id}", '"\\n"']


def conversation(draw: random.Random) -> Conversation:
    """Any turns in any order that a row can have: a tool's answer follows its call."""
    turns: list[Message] = []
    if draw.random() < 0.4:
        turns.append(Message(role="system", content=draw.choice(ASKED)))
    tools: tuple[Any, ...] = ()
    if draw.random() < 0.4:
        schema = {"type": "object", "properties": {"x": {"type": "string", "description": 'a "b"'}}}
        tools = tuple(
            {"type": "function", "function": {"name": f"f{i}", "description": "does é", "parameters": schema}}
            for i in range(draw.randint(1, 2))
        )
    calling = draw.random() < 0.5
    thinking = draw.random() < 0.5
    count = 0
    for _ in range(draw.randint(1, 3)):
        turns.append(Message(role="user", content=draw.choice(ASKED)))
        while calling and draw.random() < 0.4:
            calls = []
            for _ in range(draw.randint(1, 2)):
                count += 1
                calls.append(
                    Call(
                        name=f"f{count % 2}",
                        arguments={"x": draw.choice(ASKED), "n": 1.5},
                        id=f"abcd{count:05d}",
                    )
                )
            thought = draw.choice([None, "think\nhard"]) if thinking else None
            turns.append(
                Message(
                    role="assistant",
                    content=draw.choice(["", "ok"]),
                    calls=tuple(calls),
                    trained=draw.random() < 0.8,
                    reasoning=thought,
                )
            )
            turns += [Message(role="tool", content=draw.choice(ASKED), call_id=call.id) for call in calls]
        if draw.random() < 0.85:
            thought = draw.choice([None, "so\n\nso"]) if thinking else None
            turns.append(
                Message(
                    role="assistant",
                    content=draw.choice(SAID),
                    trained=draw.random() < 0.8,
                    reasoning=thought,
                )
            )
    if draw.random() < 0.1:
        turns.append(Message(role="system", content="late"))
    return Conversation(messages=tuple(turns), tools=tools)


def conversations(count: int, seed: int = 0) -> list[Conversation]:
    draw = random.Random(seed)
    return [conversation(draw) for _ in range(count)]


def dictionary(message: Message) -> dict[str, Any]:
    """A turn as transformers takes it."""
    found: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        functions = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in message.calls]
        found["tool_calls"] = [
            {"type": "function", "id": id_, "function": function} for id_, function in functions
        ]
    if message.reasoning:
        found["reasoning_content"] = message.reasoning
    if message.role == "tool":
        found["tool_call_id"] = message.call_id
    return found

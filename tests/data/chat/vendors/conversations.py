"""Small conversations, each with something that vendors write differently."""

from typing import Any

from tuner.data.conversation import Call, Conversation, Message


def system(text: str) -> Message:
    return Message(role="system", content=text)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str, reasoning: str | None = None, calls: tuple[Call, ...] = ()) -> Message:
    return Message(role="assistant", content=text, trained=True, reasoning=reasoning, calls=calls)


def answered(call: Call, text: str) -> Message:
    return Message(role="tool", content=text, call_id=call.id, name=call.name)


def tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


WEATHER = tool("get_weather", "The weather in a city, today", city="string")
ADD = tool("add", "Adds two numbers, 两数相加", a="number", b="number")
OSLO = Call(name="get_weather", arguments={"city": "Oslo"}, id="aB3dE6gH9")
SUM = Call(name="add", arguments={"a": 2, "b": 40}, id="zY8xW5vU2")

CONVERSATIONS = {
    "bare": Conversation(messages=(user("Hi there"), assistant("Hello!"))),
    "dialogue": Conversation(
        messages=(
            system("Answer in one word."),
            user("Which colour is snow?"),
            assistant("White."),
            user("And coal? 煤呢？"),
            assistant("Black. 黑色。"),
        )
    ),
    "white space": Conversation(
        messages=(
            system(" Be brief.\n"),
            user("\n First? "),
            assistant(" One. \n"),
            user("  Second?\n\n"),
            assistant("Two.\n "),
        )
    ),
    "tools": Conversation(
        messages=(
            user("Is it cold in Oslo?"),
            assistant("", calls=(OSLO,)),
            answered(OSLO, '{"celsius": -7}'),
            assistant("Yes, it is -7 °C."),
            user("Thank you."),
            assistant("You are welcome."),
        ),
        tools=(WEATHER,),
    ),
    "two calls": Conversation(
        messages=(
            system("Use the tools."),
            user("The weather in Oslo, and 2 + 40?"),
            assistant("", calls=(OSLO, SUM)),
            answered(OSLO, '{"celsius": -7}'),
            answered(SUM, "42"),
            assistant("-7 °C, and 42."),
        ),
        tools=(WEATHER, ADD),
    ),
    "text and call": Conversation(
        messages=(
            user("Add 2 and 40."),
            assistant("I will add them.", calls=(SUM,)),
            answered(SUM, "42"),
            assistant("It is 42."),
        ),
        tools=(ADD,),
    ),
    "thoughts": Conversation(
        messages=(
            user("2 + 2?"),
            assistant("4", "Two and two\nis four."),
            user("And 3 + 3?"),
            assistant("6", "That is six."),
        ),
    ),
    "thought and call": Conversation(
        messages=(
            system("Think."),
            user("Add 2 and 40."),
            assistant("", "I need the tool.", calls=(SUM,)),
            answered(SUM, "42"),
            assistant("It is 42."),
        ),
        tools=(ADD,),
    ),
}

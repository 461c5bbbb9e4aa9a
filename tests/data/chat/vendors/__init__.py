"""How vendors write conversations: small ones of our own, and each vendor's text of them.

`NAME.json` belongs to conf/model/chat/NAME.yaml. Its `texts` are what the vendor's published Jinja, or its
published format, makes of the conversations in `conversations`, and null where the vendor has no place for
something in it; `prompts` are the texts up to where the assistant speaks its last turn. `bos` and `eos` are
the tokenizer's tokens.
"""

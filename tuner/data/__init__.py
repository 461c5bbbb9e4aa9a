"""From files of conversations to packs of token ids: sources, formats, chat, packing, tokens."""

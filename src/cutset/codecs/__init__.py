"""How tensors are written on a link: one file a codec, behind `known_codecs`."""

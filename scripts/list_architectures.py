"""Write pretask/encoders/architectures.json anew, for the installed timm; takes minutes."""

import json

import timm

from pretask.encoders import architectures

if __name__ == "__main__":
    made = architectures.make(timm.list_models(), progress=True)
    architectures.KNOWN.write_text(json.dumps(made, indent=0) + "\n")

"""Makes the machine known to pytest; everything else lies in torch_conformance/, from plugin.py on."""

pytest_plugins = ["torch_conformance.plugin"]

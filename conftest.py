"""Makes the machine known to pytest; everything else lies in torch_conformance/plugin.py."""

pytest_plugins = ["torch_conformance.plugin"]

"""Parses a graph with TensorRT-RTX while a creator of our plugin's name is registered, and prints its log.

A process of its own: TensorRT-RTX finds the plugin and asks for it, and ends the process because it has
no plugin layers. How it looks is what counts: the parser is TensorRT's.
"""

import json
import sys

import tensorrt_rtx as trt

from plugins.aot.tensorrt_plugin import NAMESPACE, PLUGIN_SPECS


def say(kind, value):
    sys.stdout.write(json.dumps([kind, value]) + "\n")
    sys.stdout.flush()


class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)

    def log(self, severity, message):
        if "plugin" in message.lower() or severity <= trt.Logger.Severity.ERROR:
            say(str(severity).rpartition(".")[2], message)


class Creator(trt.IPluginCreatorV3One):
    """As TensorRT's own creator of a quickly deployable plugin announces itself, without the plugin."""

    def __init__(self, spec):
        trt.IPluginCreatorV3One.__init__(self)
        self.name, self.plugin_namespace, self.plugin_version = spec.name, NAMESPACE, "1"
        fields = [trt.PluginField(name, b"", trt.PluginFieldType.FLOAT32) for name in spec.attributes]
        self.field_names = trt.PluginFieldCollection(fields)

    def create_plugin(self, name, fields, phase):
        say("asked", [self.name, sorted(field.name for field in fields)])
        raise NotImplementedError("there is no plugin here")


def main(graph, registered):
    log = Log()
    builder = trt.Builder(log)
    creators = [Creator(spec) for spec in PLUGIN_SPECS if spec.name == registered]
    for creator in creators:
        say("registered", bool(builder.get_plugin_registry().register_creator(creator, NAMESPACE)))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    say("parsed", parser.parse_from_file(graph))
    say("layers", network.num_layers)


if __name__ == "__main__":
    main(*sys.argv[1:])

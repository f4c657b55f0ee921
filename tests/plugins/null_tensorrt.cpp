// The nine functions that TensorRT's Python bindings take from NVIDIA's libraries, all empty: enough
// to import the bindings on any machine and to call every part of them that is written in Python.
extern "C" {
void* createInferBuilder_INTERNAL(void*, int) { return nullptr; }
void* createInferRuntime_INTERNAL(void*, int) { return nullptr; }
void* createInferRefitter_INTERNAL(void*, void*, int) { return nullptr; }
void* getPluginRegistry() { return nullptr; }
void* getBuilderPluginRegistry(int) { return nullptr; }
void* createNvOnnxParser_INTERNAL(void*, void*, int) { return nullptr; }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return nullptr; }
int getNvOnnxParserVersion() { return 0; }
bool initLibNvInferPlugins(void*, const char*) { return false; }
}

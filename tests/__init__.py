# Compiling is most of what the tests do; this leaves out most of LLVM's part.
QUICKLY = "--xla_backend_optimization_level=0"

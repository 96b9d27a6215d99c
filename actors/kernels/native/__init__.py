"""The reference operations again, in C++ for one CPU thread: same signatures, weights read where and as they lie."""

# The kernels for FS_CUDA, in `objects`.
#   FASTSAMPLE_CUDA=auto|on|off   nvcc where it is found, or must be found, or is not looked for
#   FASTSAMPLE_CUDA=emulated      for tests: the C++ compiler, over the emulation of tests/emulate
set(cuda_sources cuda/device.cu cuda/cost_gather.cu cuda/cost_matrix.cu cuda/fill.cu cuda/moments.cu cuda/step.cu cuda/step_any.cu cuda/step_uniform.cu)

function(add_cuda text)
  add_library(fs_cuda OBJECT ${cuda_sources})
  target_include_directories(fs_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/include)
  target_compile_definitions(fs_flags INTERFACE FS_CUDA_TEXT="${text}")
  set(objects ${objects} $<TARGET_OBJECTS:fs_cuda> PARENT_SCOPE)
endfunction()

if(FASTSAMPLE_CUDA STREQUAL "emulated")
  set(emulation ${CMAKE_CURRENT_SOURCE_DIR}/../tests/emulate)
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  add_cuda("emulated")
  target_sources(fs_cuda PRIVATE ${emulation}/controls.cpp)
  target_include_directories(fs_cuda BEFORE PRIVATE ${emulation})
  # Numbers are read as quads; pragmas are nvcc's; whether a quad was loaded is known by another variable.
  target_compile_options(fs_cuda PRIVATE ${flags} ${warnings} -fno-strict-aliasing -Wno-unknown-pragmas -Wno-uninitialized -Wno-maybe-uninitialized)
  return()
endif()

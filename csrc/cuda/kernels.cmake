# The kernels for FS_CUDA, in `objects`; cuda_text and FS_CUDA_TEXT say of which build.
#   FASTSAMPLE_CUDA=auto|on|off   nvcc where it is found, or must be found, or is not looked for
#   FASTSAMPLE_CUDA=emulated      for tests: the C++ compiler, over the emulation of tests/emulate
set(cuda_sources cuda/device.cu cuda/cost_gather.cu cuda/cost_matrix.cu cuda/fill.cu cuda/moments.cu cuda/step.cu cuda/step_any.cu cuda/step_uniform.cu)

function(add_cuda text)
  add_library(fs_cuda OBJECT ${cuda_sources} ${ARGN})
  target_include_directories(fs_cuda PRIVATE ${CMAKE_CURRENT_SOURCE_DIR} ${CMAKE_CURRENT_SOURCE_DIR}/include)
  target_compile_definitions(fs_flags INTERFACE FS_CUDA_TEXT="${text}")
  set(objects ${objects} $<TARGET_OBJECTS:fs_cuda> PARENT_SCOPE)
  set(cuda_text "${text}" PARENT_SCOPE)
endfunction()

if(FASTSAMPLE_CUDA STREQUAL "emulated")
  set(emulation ${CMAKE_CURRENT_SOURCE_DIR}/../tests/emulate)
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  add_cuda("emulated" ${emulation}/controls.cpp)
  target_include_directories(fs_cuda BEFORE PRIVATE ${emulation})
  # Numbers are read as quads; pragmas are nvcc's; whether a quad was loaded is known by another variable. At -O1 g++ takes half as
  # long as at -O3, which few launches of small tensors make up for.
  target_compile_options(fs_cuda PRIVATE ${flags} ${warnings} -O1 -fno-strict-aliasing -Wno-unknown-pragmas -Wno-uninitialized
    -Wno-maybe-uninitialized)
  return()
endif()

include(CheckLanguage)
check_language(CUDA)
if(NOT CMAKE_CUDA_COMPILER)
  if(FASTSAMPLE_CUDA STREQUAL "on")
    message(FATAL_ERROR "FASTSAMPLE_CUDA=on: nvcc was not found; put it on PATH or name it by -DCMAKE_CUDA_COMPILER=")
  endif()
  message(STATUS "built without CUDA kernels: nvcc was not found")
  return()
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
  # A100; H100 and H200; B200; RTX 50, and PTX for what comes after it. nvcc knows the last two from 12.8 on.
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
endif()
enable_language(CUDA)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8 AND CMAKE_CUDA_ARCHITECTURES STREQUAL "80-real;90-real;100-real;120")
  set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
endif()
find_package(CUDAToolkit REQUIRED)

# The static runtime asks for the driver when it is first used, so that the library loads where there is none.
set(cuda_libraries CUDA::cudart_static)
string(REPLACE ";" " " architectures "${CMAKE_CUDA_ARCHITECTURES}")
add_cuda("${CMAKE_CUDA_COMPILER_VERSION} for ${architectures}")
set_target_properties(fs_cuda PROPERTIES CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden
  CUDA_RUNTIME_LIBRARY Static CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
# No contraction, as on the CPU: a product is rounded before it is added.
target_compile_options(fs_cuda PRIVATE --fmad=false -Xcompiler=-Wall,-Wextra,-ffp-contract=off)
if(FASTSAMPLE_WERROR)
  target_compile_options(fs_cuda PRIVATE -Werror=all-warnings)
endif()

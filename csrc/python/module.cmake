# fastsample/_C: the same objects and python/module.cpp, everything hidden but the module's entry point
# (and, in the build over the emulation, what tests ask it).
find_package(Python 3.10 COMPONENTS Interpreter Development.Module REQUIRED)

# pybind11 is headers only: from its own package, else from torch's include folder (a machine without network).
set(find_pybind11 "
import importlib.util as u, os
own, torch = u.find_spec('pybind11'), u.find_spec('torch')
print(os.path.join(os.path.dirname((own or torch).origin), 'include') if own or torch else '')
")
if(NOT FASTSAMPLE_PYBIND11)
  execute_process(COMMAND ${Python_EXECUTABLE} -c "${find_pybind11}" OUTPUT_VARIABLE FASTSAMPLE_PYBIND11 OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(NOT EXISTS ${FASTSAMPLE_PYBIND11}/pybind11/pybind11.h)
  message(FATAL_ERROR "pybind11: no headers for ${Python_EXECUTABLE}; pip install pybind11, or pass -DFASTSAMPLE_PYBIND11=<include folder>")
endif()

Python_add_library(_C MODULE WITH_SOABI python/module.cpp ${objects})
target_include_directories(_C SYSTEM PRIVATE ${FASTSAMPLE_PYBIND11})
link_core(_C python/module.map)
set_target_properties(_C PROPERTIES LIBRARY_OUTPUT_DIRECTORY ${FASTSAMPLE_PYTHON_DIR} SKIP_BUILD_RPATH ON)

# libfastsample, shared and static, for C and C++: find_package(fastsample) gives the targets fastsample::fastsample and
# fastsample::static, pkg-config the package fastsample. Both say what CUDA they were built with: fastsample_CUDA, --variable=cuda.
# libfastsample_engine over it, for C++17: fastsample::engine and fastsample::engine_static, and the package fastsample-engine.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(fastsample SHARED ${objects})
link_core(fastsample library.map)
set_target_properties(fastsample PROPERTIES LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION} SOVERSION 1)

# What a program needs beside the static library, by names that every linker knows.
set(needed -pthread stdc++ m)
if(OpenMP_CXX_FOUND)
  list(APPEND needed ${OpenMP_CXX_LIB_NAMES})
endif()
if(cuda_libraries)
  list(APPEND needed ${CUDA_cudart_static_LIBRARY} dl rt)
endif()
add_library(fastsample_static STATIC ${objects})
set_target_properties(fastsample_static PROPERTIES LINKER_LANGUAGE CXX OUTPUT_NAME fastsample EXPORT_NAME static)
target_link_libraries(fastsample_static INTERFACE ${needed})

add_library(fastsample_engine SHARED ${engine_objects})
target_link_libraries(fastsample_engine PUBLIC fastsample PRIVATE fs_flags Threads::Threads)
set_target_properties(fastsample_engine PROPERTIES LINKER_LANGUAGE CXX EXPORT_NAME engine VERSION ${PROJECT_VERSION} SOVERSION 1)
add_library(fastsample_engine_static STATIC ${engine_objects})
target_link_libraries(fastsample_engine_static PUBLIC fastsample_static)
set_target_properties(fastsample_engine_static PROPERTIES LINKER_LANGUAGE CXX OUTPUT_NAME fastsample_engine EXPORT_NAME engine_static)

set(libraries fastsample fastsample_static fastsample_engine fastsample_engine_static)
foreach(target ${libraries})
  target_include_directories(${target} INTERFACE
    $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
endforeach()

install(TARGETS ${libraries} EXPORT fastsample LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/fastsample DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fastsample)
install(EXPORT fastsample FILE fastsampleTargets.cmake NAMESPACE fastsample:: DESTINATION ${package_dir})
file(WRITE ${CMAKE_CURRENT_BINARY_DIR}/fastsampleConfig.cmake
  "set(fastsample_CUDA \"${cuda_text}\")\ninclude(\${CMAKE_CURRENT_LIST_DIR}/fastsampleTargets.cmake)\n")
write_basic_package_version_file(fastsampleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fastsampleConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/fastsampleConfigVersion.cmake
  DESTINATION ${package_dir})

string(REGEX REPLACE "([^;]+)" "-l\\1" private "${needed}")
string(REGEX REPLACE "-l([-/])" "\\1" private "${private}")
string(REPLACE ";" " " private "${private}")
foreach(package fastsample fastsample-engine)
  configure_file(${package}.pc.in ${package}.pc @ONLY)
  install(FILES ${CMAKE_CURRENT_BINARY_DIR}/${package}.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
endforeach()

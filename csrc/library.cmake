# libfastsample.so for C and C++: find_package(fastsample) gives the target fastsample::fastsample.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

add_library(fastsample SHARED ${objects})
add_library(fastsample::fastsample ALIAS fastsample)
link_core(fastsample library.map)
set_target_properties(fastsample PROPERTIES LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION} SOVERSION 1)
target_include_directories(fastsample INTERFACE
  $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)

install(TARGETS fastsample EXPORT fastsample LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(FILES include/fastsample/fastsample.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/fastsample)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/fastsample)
install(EXPORT fastsample FILE fastsampleConfig.cmake NAMESPACE fastsample:: DESTINATION ${package_dir})
write_basic_package_version_file(fastsampleConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/fastsampleConfigVersion.cmake DESTINATION ${package_dir})

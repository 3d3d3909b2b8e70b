# What `cmake --install` and CPack put where: headers, library, program, and files for find_package and pkg-config.
install(TARGETS latentrt EXPORT latentrt LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS latentrt-draw DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY include/latentrt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(FILES ../LICENSE ../NOTICE DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(package "${CMAKE_INSTALL_LIBDIR}/cmake/latentrt")
install(EXPORT latentrt FILE latentrtTargets.cmake NAMESPACE latentrt:: DESTINATION "${package}")
configure_package_config_file(cmake/latentrtConfig.cmake.in latentrtConfig.cmake INSTALL_DESTINATION "${package}")
write_basic_package_version_file(latentrtConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/latentrtConfig.cmake"
              "${CMAKE_CURRENT_BINARY_DIR}/latentrtConfigVersion.cmake" DESTINATION "${package}")

# The prefix follows from where the file lies, so that an unpacked archive works anywhere.
file(RELATIVE_PATH to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
string(REGEX REPLACE "/$" "" to_prefix "${to_prefix}")
configure_file(cmake/latentrt.pc.in latentrt.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/latentrt.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")

set(CPACK_PACKAGE_NAME latentrt)
set(CPACK_PACKAGE_VENDOR latentrt)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "Stable Diffusion from a bundle, for C and C++")
set(CPACK_PACKAGE_CONTACT "the authors of latentrt <latentrt@localhost>")
set(CPACK_GENERATOR TGZ DEB)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SECTION libs)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
include(CPack)
